//! Files that appear whole.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use tempfile::NamedTempFile;

/// Begins a temporary file's name.
const PREFIX: &str = ".lstc-";

/// Writes a file under a temporary name beside its own, syncs it, and renames it: whoever looks finds the earlier file
/// or the whole new one, and a process that is killed leaves the earlier one.
///
/// # Errors
/// From the file system, e.g. no space; from `write`. The earlier file is then as it was.
pub fn replace(path: &Path, write: impl FnOnce(&mut NamedTempFile) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let folder = path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    let context = || format!("cannot write `{}`", path.display());
    let mut file = tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder).with_context(context)?;
    write(&mut file).with_context(context)?;
    // By its name: what writes it may have put another file there.
    let written = File::open(file.path()).with_context(context)?;
    permit(&written).and_then(|()| written.sync_all()).with_context(context)?;
    file.persist(path).map_err(|e| e.error).with_context(context)?;
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(context)
}

/// Whether a file could be written, before there is anything to write.
///
/// # Errors
/// A folder that is missing, or that may not be written to.
pub fn check(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    let made = tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder).map(drop);
    made.map_err(|e| e.kind())
        .map_err(std::io::Error::from)
        .with_context(|| format!("cannot write `{}`", path.display()))
}

/// Removes what writers that were killed left in a folder that only one process at a time writes to.
pub fn sweep(folder: &Path) {
    let is_left = |name: &str| name.starts_with(PREFIX) || name.starts_with(".tmp");
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(is_left) && entry.file_type().is_ok_and(|t| t.is_file()) {
            // What cannot be removed is in nobody's way.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Temporary files are for their owner alone; a finished one is for whoever may read the folder.
///
/// # Errors
/// From the file system.
pub fn permit(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn safe(path: &Path) {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    }

    #[test]
    fn what_fails_half_way_leaves_the_earlier_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a");
        replace(&path, |f| Ok(f.write_all(b"one")?)).expect("it is written");
        safe(&path);
        let failed = replace(&path, |f| {
            f.write_all(b"tw")?;
            anyhow::bail!("no more")
        });
        assert!(failed.is_err_and(|e| e.to_string().contains("cannot write")));
        assert_eq!(std::fs::read(&path).expect("it is there"), b"one");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}
