//! Files that appear whole.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use tempfile::NamedTempFile;

/// Writes a file under a temporary name beside its own, syncs it, and renames it: whoever looks finds the earlier file
/// or the whole new one, and a process that is killed leaves the earlier one.
///
/// # Errors
/// From the file system, e.g. no space; from `write`. The earlier file is then as it was.
pub fn replace(path: &Path, write: impl FnOnce(&mut NamedTempFile) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let folder = path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    let context = || format!("cannot write `{}`", path.display());
    let mut file = tempfile::Builder::new().prefix(".lstc-").tempfile_in(folder).with_context(context)?;
    write(&mut file).with_context(context)?;
    file.as_file().sync_all().with_context(context)?;
    permit(file.as_file()).with_context(context)?;
    file.persist(path).map_err(|e| e.error).with_context(context)?;
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(context)
}

/// Temporary files are for their owner alone; a finished one is for whoever may read the folder.
fn permit(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_fails_half_way_leaves_the_earlier_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a");
        replace(&path, |f| Ok(f.write_all(b"one")?)).expect("it is written");
        let failed = replace(&path, |f| {
            f.write_all(b"tw")?;
            anyhow::bail!("no more")
        });
        assert!(failed.is_err_and(|e| e.to_string().contains("cannot write")));
        assert_eq!(std::fs::read(&path).expect("it is there"), b"one");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}
