//! Removing what `lstc runtime install` put into the user's cache directory.
//!
//! * Only directories with the name of an installation are touched.
//! * An installation is removed by one rename, under the lock of the installations: a reader finds it whole or not at all.

use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use lstc_base::scratch::Scratch;

use super::install::{self, InstallError, Progress};
use super::library::Version;
use super::pins::Flavour;
use super::pip::size_below;

/// Which installations: all of a version, or the one of a flavour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Which {
    pub version: Version,
    pub flavour: Option<Flavour>,
}

impl FromStr for Which {
    type Err = String;

    /// Written as `1.32.0`, `1.32.0-cpu` or `1.32.0-cuda`.
    fn from_str(text: &str) -> Result<Which, String> {
        let (number, flavour) = text.split_once('-').map_or((text, None), |(number, flavour)| (number, Some(flavour)));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let version =
            Version::parse(number).filter(|_| number.split('.').count() == 3 && number.split('.').all(digits));
        let flavour = match flavour {
            None => Some(None),
            Some(name) => Flavour::ALL.into_iter().find(|flavour| flavour.to_string() == name).map(Some),
        };
        let (Some(version), Some(flavour)) = (version, flavour) else {
            return Err("expected a version, as in 1.32.0, 1.32.0-cpu or 1.32.0-cuda".to_owned());
        };
        Ok(Which { version, flavour })
    }
}

/// An installation that was removed.
#[derive(Clone, Debug)]
pub struct Removed {
    pub version: Version,
    pub flavour: Flavour,
    pub directory: PathBuf,
    /// The former size of its files.
    pub bytes: u64,
}

/// Removes installations: those that `which` names, or all.
///
/// # Errors
/// No installation matches `which`; from the file system.
pub fn remove(which: Option<Which>, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Removed>, InstallError> {
    let home = install::home().ok_or(InstallError::NoCacheDirectory)?;
    let found = install::installations();
    let is_meant = |(flavour, version): &(Flavour, Version)| {
        which.is_none_or(|which| which.version == *version && which.flavour.is_none_or(|wanted| wanted == *flavour))
    };
    let meant: Vec<_> = found.iter().copied().filter(is_meant).collect();
    if meant.is_empty() {
        let there = found.iter().map(|(flavour, version)| format!("{version}-{flavour}")).collect();
        return Err(InstallError::NotInstalled { home, there });
    }
    let _alone = install::lock(&home, progress)?;
    let discard = Scratch::new_in(&home).map_err(install::files(&home))?;
    let mut removed = Vec::new();
    for (flavour, version) in meant {
        let directory = install::directory(&home, flavour, version);
        let bytes = size_below(&directory);
        let gone = discard.path().join(removed.len().to_string());
        fs::rename(&directory, gone).map_err(install::files(&directory))?;
        removed.push(Removed { version, flavour, directory, bytes });
    }
    discard.close().map_err(install::files(&home))?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_may_name_its_flavour() {
        let version = Version { major: 1, minor: 32, patch: 0 };
        let which = |text: &str| text.parse::<Which>();
        assert_eq!(which("1.32.0"), Ok(Which { version, flavour: None }));
        assert_eq!(which("1.32.0-cuda"), Ok(Which { version, flavour: Some(Flavour::Cuda) }));
        for text in ["", "1.32", "1.32.0-gpu", "../x", "1.32.0-", "1.32.x", "1.32.0/.."] {
            assert!(which(text).is_err(), "{text}");
        }
    }
}
