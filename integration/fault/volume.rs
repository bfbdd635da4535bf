//! A file system of a test's own, which can be cut off, frozen and taken away.

use std::path::PathBuf;
use std::process::Command;

use crate::room::{Room, SOON, Skip, User, wait_until};

/// Asks the file system of a directory to go down at once, without writing anything more: FS_IOC_SHUTDOWN, no log
/// flush.
const SHUT_DOWN: &str = r#"sysopen(my $at, $ARGV[0], 0) or die "$!\n";
    my $how = pack("L", 2);
    ioctl($at, 0x8004587d, $how) or die "$!\n";"#;

/// What a volume is formatted with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    Ext4,
    Xfs,
}

impl Format {
    /// As mount and mkfs call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// A file system in a file, mounted. Dropped, it is unmounted, whoever still uses it.
#[derive(Debug)]
pub(crate) struct Volume {
    format: Format,
    image: PathBuf,
    at: PathBuf,
}

impl Volume {
    /// Of so many megabytes, which take no room before they are written.
    ///
    /// # Errors
    /// Where the machine does not let us.
    pub(crate) fn new(room: &Room, name: &str, format: Format, megabytes: u64) -> Result<Self, Skip> {
        let Some(User(uid, gid)) = room.user() else {
            return Err(Skip("a file system can be mounted only by root".to_owned()));
        };
        let (image, at) = (room.path(&format!("{name}.image")), room.path(name));
        std::fs::create_dir(&at).unwrap();
        std::fs::File::create_new(&image).unwrap().set_len(megabytes << 20).unwrap();
        let mut make = Command::new(format!("mkfs.{}", format.name()));
        make.arg("-q").args((format == Format::Ext4).then_some("-F")).arg(&image);
        tried(&mut make)?;
        let this = Self { format, image, at };
        tried(&mut this.mounting())?;
        std::os::unix::fs::chown(&this.at, Some(uid), Some(gid)).unwrap();
        Ok(this)
    }

    /// A path on it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    /// What it is formatted with.
    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    /// From now on every call to it fails, and what was not durable is gone when it is there again.
    ///
    /// # Errors
    /// Where the kernel cannot, or the means to ask for it are missing.
    pub(crate) fn cut_off(&self) -> Result<(), Skip> {
        tried(Command::new("perl").args(["-e", SHUT_DOWN]).arg(&self.at))
    }

    /// It is there again, with what was durable. Nobody may use it at the moment.
    #[track_caller]
    pub(crate) fn again(&self) {
        let unmounted = || tried(Command::new("umount").arg(&self.at));
        wait_until("the file system to be let go", SOON, || unmounted().is_ok());
        self.attach();
    }

    /// The same after [`Volume::detach`].
    #[track_caller]
    pub(crate) fn attach(&self) {
        tried(&mut self.mounting()).unwrap();
    }

    /// Takes it out of the directory tree. Files that are open stay so.
    #[track_caller]
    pub(crate) fn detach(&self) {
        tried(Command::new("umount").arg("-l").arg(&self.at)).unwrap();
    }

    /// It can only be read from now on, as after an error of its device. Only ext4.
    ///
    /// # Errors
    /// Where the kernel cannot.
    pub(crate) fn forbid_writing(&self) -> Result<(), Skip> {
        tried(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.at))
    }

    /// Whoever writes to it waits until what is returned is dropped.
    ///
    /// # Errors
    /// Where the machine cannot.
    pub(crate) fn freeze(&self) -> Result<Frozen<'_>, Skip> {
        tried(Command::new("fsfreeze").arg("-f").arg(&self.at)).map(|()| Frozen(self))
    }

    fn mounting(&self) -> Command {
        let mut command = Command::new("mount");
        command.args(["-t", self.format.name(), "-o", "loop"]).arg(&self.image).arg(&self.at);
        command
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: after a panic somebody may still have a file open.
        let _ = tried(Command::new("umount").arg("-l").arg(&self.at));
    }
}

/// A file system that no one can write to for as long as this lives.
#[derive(Debug)]
pub(crate) struct Frozen<'a>(&'a Volume);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = tried(Command::new("fsfreeze").arg("-u").arg(&self.0.at));
    }
}

/// Runs a tool of the machine's.
fn tried(command: &mut Command) -> Result<(), Skip> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Err(e) => Err(Skip(format!("{program}: {e}"))),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Skip(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

/// A file that takes the room of a volume.
#[derive(Debug)]
pub(crate) struct Filler(PathBuf);

impl Filler {
    /// Takes all room but `left` megabytes.
    pub(crate) fn all_but(room: &Room, volume: &Volume, left: u64) -> Self {
        let path = volume.path("filler");
        let free = fs2::available_space(&volume.at).unwrap();
        let bytes = free.saturating_sub(left << 20).to_string();
        room.must(room.command("fallocate").args(["-l", &bytes]).arg(&path));
        Self(path)
    }

    /// Makes room again.
    pub(crate) fn remove(self) {
        std::fs::remove_file(self.0).unwrap();
    }
}
