//! A file that gets its name when it is whole.

#![allow(clippy::disallowed_methods, reason = "the one place for them")]

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use rustix::io::Errno;

use super::{DiskError, Real};

/// Another process may take the name between its removal and ours; not so often.
const TRIES: u32 = 100;

/// A new file without a name, buffered. Dropped, or when the process is killed, nothing is left of it.
#[derive(Debug)]
pub struct Unnamed {
    file: fs::File,
    path: PathBuf,
    /// Its name so far, where the file system has no files without one.
    temporary: Option<PathBuf>,
}

impl Real {
    /// A new file that is to be named `path`. The umask takes its part of `mode`.
    ///
    /// # Errors
    /// When it cannot be made in that directory.
    pub fn create_unnamed(path: &Path, mode: u32) -> Result<Unnamed, DiskError> {
        let wrong = |e| DiskError::new("create", path, e);
        match without_name(path, mode) {
            Ok(file) => return Ok(Unnamed { file, path: path.to_owned(), temporary: None }),
            Err(e) if !is_unknown_here(&e) => return Err(wrong(e)),
            Err(_) => {}
        }
        let temporary = beside(path);
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(&temporary).map_err(wrong)?;
        Ok(Unnamed { file, path: path.to_owned(), temporary: Some(temporary) })
    }
}

impl Unnamed {
    /// Writes all of it.
    ///
    /// # Errors
    /// When it cannot.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write_all_at(bytes, offset).map_err(|e| DiskError::new("write", &self.path, e))
    }

    /// Reads what has been written there, all of it.
    ///
    /// # Errors
    /// When it cannot.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        self.file.read_exact_at(into, offset).map_err(|e| DiskError::new("read", &self.path, e))
    }

    /// Gives it its name, in place of what bears it. Nothing is synced.
    ///
    /// # Errors
    /// When it cannot; nothing is left of it then.
    pub fn name(mut self) -> Result<(), DiskError> {
        let done = match &self.temporary {
            Some(temporary) => fs::rename(temporary, &self.path),
            None => link(&self.file, &self.path),
        };
        if done.is_ok() {
            self.temporary = None;
        }
        done.map_err(|e| DiskError::new("name", &self.path, e))
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

fn without_name(path: &Path, mode: u32) -> io::Result<fs::File> {
    // It is named through this.
    if !Path::new("/proc/self/fd").exists() {
        return Err(Errno::OPNOTSUPP.into());
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let flag = i32::try_from(OFlags::TMPFILE.bits()).map_err(|_| Errno::OPNOTSUPP)?;
    OpenOptions::new().read(true).write(true).custom_flags(flag).mode(mode).open(dir)
}

/// What the kernel and its file systems say that do not know files without a name.
fn is_unknown_here(e: &io::Error) -> bool {
    let unknown = [Errno::OPNOTSUPP, Errno::ISDIR, Errno::INVAL].map(Errno::raw_os_error);
    e.raw_os_error().is_some_and(|code| unknown.contains(&code))
}

/// A name that no other process makes.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

fn link(file: &fs::File, path: &Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut tries = 1;
    loop {
        match linkat(CWD, &open, CWD, path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) if tries < TRIES => {}
            Err(e) => return Err(e.into()),
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => tries += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways, whatever this file system knows.
    fn both(path: &Path) -> [Unnamed; 2] {
        let temporary = beside(path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&temporary).unwrap();
        let named = Unnamed { file, path: path.to_owned(), temporary: Some(temporary) };
        [Real::create_unnamed(path, 0o600).unwrap(), named]
    }

    fn names(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn what_is_not_named_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for file in both(&dir.path().join("a")) {
            file.write_at(0, b"half").unwrap();
        }
        assert_eq!(names(dir.path()), 0);
    }

    #[test]
    fn a_name_is_that_of_a_whole_file_and_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for (i, file) in both(&path).into_iter().enumerate() {
            fs::write(&path, b"a longer one that was there").unwrap();
            file.write_at(0, format!("whole {i}").as_bytes()).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"a longer one that was there");
            let mut back = [0; 4];
            file.read_at(1, &mut back).unwrap();
            assert_eq!(back, *b"hole");
            file.name().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("whole {i}"));
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(names(dir.path()), 0);
    }

    #[test]
    fn many_may_want_the_same_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        let file = Real::create_unnamed(path, 0o600).unwrap();
                        file.write_at(0, &vec![thread; 10_000]).unwrap();
                        file.name().unwrap();
                    }
                });
            }
        });
        let content = fs::read(&path).unwrap();
        assert!(content.len() == 10_000 && content.iter().all(|byte| *byte == content[0]));
        assert_eq!(names(dir.path()), 1);
    }

    #[test]
    fn a_directory_in_the_way_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for file in both(&dir.path().join("a")) {
            fs::create_dir(dir.path().join("a")).unwrap();
            file.name().unwrap_err();
            fs::remove_dir(dir.path().join("a")).unwrap();
        }
        assert!(Real::create_unnamed(&dir.path().join("none/a"), 0o600).is_err());
        assert_eq!(names(dir.path()), 0);
    }
}
