//! What `pg_basebackup` can be told, and what it answers to what it cannot be told.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::connect::ConnectionFlags;
use super::super::getopt::{Flag, Getopt};
use super::super::pg_words::{Refusal, interval, slot};
use super::rate::max_rate;
use super::values::{
    Compression, Format, Wal, backup_target, canonical, checkpoint, format, mapping, ours, servers, sync_method,
    wal_method,
};
use crate::basebackup::{Destination, StreamSlot, Sync, WalMethod};
use crate::image::ManifestAlgorithm;
use crate::protocol::{Checkpoint, ManifestAsked, MaxRate, ServerCompression};

/// What is asked for.
#[derive(Debug)]
pub(super) enum Asked {
    Help,
    Version,
    Backup(Box<Options>),
}

/// A command line that is in order.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) destination: Destination,
    pub(super) wal: WalMethod,
    pub(super) status_interval: Option<Duration>,
    pub(super) server_compression: Option<ServerCompression>,
    pub(super) manifest: Option<ManifestAsked>,
    pub(super) incremental: Option<PathBuf>,
    pub(super) label: String,
    pub(super) checkpoint: Checkpoint,
    pub(super) max_rate: Option<MaxRate>,
    pub(super) recovery: bool,
    pub(super) verify_checksums: bool,
    pub(super) verify: bool,
    pub(super) estimate_size: bool,
    pub(super) sync: Sync,
    pub(super) clean: bool,
    pub(super) progress: bool,
    pub(super) verbose: bool,
    pub(super) connection: ConnectionFlags,
}

#[derive(Clone, Copy, Debug)]
enum Id {
    Help,
    Version,
    Pgdata,
    Format,
    Incremental,
    Checkpoint,
    CreateSlot,
    MaxRate,
    WriteRecoveryConf,
    Slot,
    Target,
    TablespaceMapping,
    WalMethod,
    Gzip,
    Compress,
    Label,
    NoClean,
    NoSync,
    Dbname,
    Host,
    Port,
    Username,
    NoPassword,
    Password,
    StatusInterval,
    Verbose,
    Progress,
    Waldir,
    NoSlot,
    NoVerifyChecksums,
    NoEstimateSize,
    NoManifest,
    ManifestForceEncode,
    ManifestChecksums,
    SyncMethod,
    NoVerify,
}

const fn flag(long: &'static str, short: Option<u8>, takes: bool, id: Id) -> Flag<Id> {
    Flag { long, short, takes, id }
}

/// In the order in which an ambiguous name's possibilities are listed. Help and version are known by
/// their long names, but answered only as the first word of all.
const FLAGS: &[Flag<Id>] = &[
    flag("help", None, false, Id::Help),
    flag("version", None, false, Id::Version),
    flag("pgdata", Some(b'D'), true, Id::Pgdata),
    flag("format", Some(b'F'), true, Id::Format),
    flag("incremental", Some(b'i'), true, Id::Incremental),
    flag("checkpoint", Some(b'c'), true, Id::Checkpoint),
    flag("create-slot", Some(b'C'), false, Id::CreateSlot),
    flag("max-rate", Some(b'r'), true, Id::MaxRate),
    flag("write-recovery-conf", Some(b'R'), false, Id::WriteRecoveryConf),
    flag("slot", Some(b'S'), true, Id::Slot),
    flag("target", Some(b't'), true, Id::Target),
    flag("tablespace-mapping", Some(b'T'), true, Id::TablespaceMapping),
    flag("wal-method", Some(b'X'), true, Id::WalMethod),
    flag("gzip", Some(b'z'), false, Id::Gzip),
    flag("compress", Some(b'Z'), true, Id::Compress),
    flag("label", Some(b'l'), true, Id::Label),
    flag("no-clean", Some(b'n'), false, Id::NoClean),
    flag("no-sync", Some(b'N'), false, Id::NoSync),
    flag("dbname", Some(b'd'), true, Id::Dbname),
    flag("host", Some(b'h'), true, Id::Host),
    flag("port", Some(b'p'), true, Id::Port),
    flag("username", Some(b'U'), true, Id::Username),
    flag("no-password", Some(b'w'), false, Id::NoPassword),
    flag("password", Some(b'W'), false, Id::Password),
    flag("status-interval", Some(b's'), true, Id::StatusInterval),
    flag("verbose", Some(b'v'), false, Id::Verbose),
    flag("progress", Some(b'P'), false, Id::Progress),
    flag("waldir", None, true, Id::Waldir),
    flag("no-slot", None, false, Id::NoSlot),
    flag("no-verify-checksums", None, false, Id::NoVerifyChecksums),
    flag("no-estimate-size", None, false, Id::NoEstimateSize),
    flag("no-manifest", None, false, Id::NoManifest),
    flag("manifest-force-encode", None, false, Id::ManifestForceEncode),
    flag("manifest-checksums", None, true, Id::ManifestChecksums),
    flag("sync-method", None, true, Id::SyncMethod),
    // Ours.
    flag("no-verify", None, false, Id::NoVerify),
];

/// Flags as they were given; what they add up to is seen when all are known.
#[derive(Debug)]
struct Given {
    directory: Option<PathBuf>,
    target: Option<String>,
    format: Option<Format>,
    mappings: Vec<(PathBuf, PathBuf)>,
    wal_directory: Option<PathBuf>,
    wal: Wal,
    slot: Option<String>,
    create_slot: bool,
    no_slot: bool,
    status_interval: Option<Duration>,
    compress: String,
    manifest: bool,
    manifest_checksums: Option<String>,
    manifest_force_encode: bool,
    incremental: Option<PathBuf>,
    label: String,
    checkpoint: Checkpoint,
    max_rate: Option<MaxRate>,
    recovery: bool,
    verify_checksums: bool,
    verify: bool,
    estimate_size: bool,
    sync: bool,
    sync_method: Sync,
    clean: bool,
    progress: bool,
    verbose: bool,
    connection: ConnectionFlags,
}

impl Default for Given {
    /// What holds where nothing is said.
    fn default() -> Self {
        Self {
            directory: None,
            target: None,
            format: None,
            mappings: Vec::new(),
            wal_directory: None,
            wal: Wal::Stream,
            slot: None,
            create_slot: false,
            no_slot: false,
            status_interval: Some(Duration::from_secs(10)),
            compress: "none".to_owned(),
            manifest: true,
            manifest_checksums: None,
            manifest_force_encode: false,
            incremental: None,
            label: "pg_basebackup base backup".to_owned(),
            checkpoint: Checkpoint::Spread,
            max_rate: None,
            recovery: false,
            verify_checksums: true,
            verify: true,
            estimate_size: true,
            sync: true,
            sync_method: Sync::Fsync,
            clean: true,
            progress: false,
            verbose: false,
            connection: ConnectionFlags::default(),
        }
    }
}

impl Asked {
    /// Reads a command line, the program's name first.
    pub(super) fn read(arguments: Vec<OsString>) -> Result<Self, Refusal> {
        match arguments.get(1).and_then(|word| word.to_str()) {
            Some("--help" | "-?") => return Ok(Self::Help),
            Some("--version" | "-V") => return Ok(Self::Version),
            _ => {}
        }
        let mut given = Given::default();
        let mut getopt = Getopt::new(FLAGS, arguments);
        for option in getopt.by_ref() {
            let (id, value) = option.map_err(Refusal::Complaint)?;
            given.take(id, value.unwrap_or_default())?;
        }
        if let Some(first) = getopt.into_operands().first() {
            let first = first.to_string_lossy();
            return Err(Refusal::Usage(format!("too many command-line arguments (first is \"{first}\")")));
        }
        given.add_up().map(|options| Self::Backup(Box::new(options)))
    }
}

impl Given {
    fn take(&mut self, id: Id, value: OsString) -> Result<(), Refusal> {
        // Only names of files may be other than text.
        let text = || value.to_string_lossy().into_owned();
        match id {
            // Known, and out of place here.
            Id::Help | Id::Version => return Err(Refusal::Misplaced),
            Id::Pgdata => self.directory = Some(value.into()),
            Id::Format => self.format = Some(format(&text())?),
            Id::Incremental => self.incremental = Some(value.into()),
            Id::Checkpoint => self.checkpoint = checkpoint(&text())?,
            Id::CreateSlot => self.create_slot = true,
            Id::MaxRate => self.max_rate = Some(max_rate(&text()).map_err(Refusal::Value)?),
            Id::WriteRecoveryConf => self.recovery = true,
            Id::Slot => self.slot = Some(text()),
            Id::Target => self.target = Some(text()),
            Id::TablespaceMapping => self.mappings.push(mapping(&value)?),
            Id::WalMethod => self.wal = wal_method(&text())?,
            Id::Gzip => self.compress = "gzip".to_owned(),
            Id::Compress => self.compress = text(),
            Id::Label => self.label = text(),
            Id::NoClean => self.clean = false,
            Id::NoSync => self.sync = false,
            Id::Dbname => self.connection.dbname = Some(text()),
            Id::Host => self.connection.host = Some(text()),
            Id::Port => self.connection.port = Some(text()),
            Id::Username => self.connection.username = Some(text()),
            // The last of the two wins.
            Id::NoPassword => (self.connection.no_password, self.connection.password) = (true, false),
            Id::Password => (self.connection.no_password, self.connection.password) = (false, true),
            Id::StatusInterval => self.status_interval = interval(&text())?,
            Id::Verbose => self.verbose = true,
            Id::Progress => self.progress = true,
            Id::Waldir => self.wal_directory = Some(value.into()),
            Id::NoSlot => self.no_slot = true,
            Id::NoVerifyChecksums => self.verify_checksums = false,
            Id::NoEstimateSize => self.estimate_size = false,
            Id::NoManifest => self.manifest = false,
            Id::ManifestForceEncode => self.manifest_force_encode = true,
            Id::ManifestChecksums => self.manifest_checksums = Some(text()),
            Id::SyncMethod => self.sync_method = sync_method(&text())?,
            Id::NoVerify => self.verify = false,
        }
        Ok(())
    }

    /// Of several conflicts the one is told that pg_basebackup tells.
    fn add_up(mut self) -> Result<Options, Refusal> {
        // To be sent to the client is what happens without a target.
        self.target = self.target.filter(|target| target != "client");
        self.check_place()?;
        let compression = self.compression()?;
        self.check_wal(&compression)?;
        self.check_rest()?;
        let (ours, server_compression) = match compression {
            Compression::Ours(ours) => (ours, None),
            Compression::Servers(servers) => (None, Some(servers)),
        };
        Ok(Options {
            wal: self.wal_method()?,
            manifest: self.manifest_asked()?,
            destination: match (self.target, self.format, self.directory.unwrap_or_default()) {
                (Some(target), ..) => Destination::Server(backup_target(target)),
                (None, Some(Format::Tar), directory) if directory == Path::new("-") => {
                    Destination::StandardOutput { compression: ours }
                }
                (None, Some(Format::Tar), directory) => Destination::Tar { directory, compression: ours },
                (None, _, directory) => Destination::Plain {
                    directory,
                    mappings: self.mappings,
                    wal_directory: self.wal_directory.map(|path| canonical(&path)),
                },
            },
            status_interval: self.status_interval,
            server_compression,
            incremental: self.incremental,
            label: self.label,
            checkpoint: self.checkpoint,
            max_rate: self.max_rate,
            recovery: self.recovery,
            verify_checksums: self.verify_checksums,
            verify: self.verify,
            estimate_size: self.estimate_size,
            sync: if self.sync { self.sync_method } else { Sync::None },
            clean: self.clean,
            progress: self.progress,
            verbose: self.verbose,
            connection: self.connection,
        })
    }

    fn is_tar(&self) -> bool {
        self.format == Some(Format::Tar)
    }

    fn check_place(&self) -> Result<(), Refusal> {
        let refused = |message: &str| Err(Refusal::Usage(message.to_owned()));
        match (&self.directory, &self.target) {
            (_, Some(_)) if self.format.is_some() => refused("cannot specify both format and backup target"),
            (None, None) => refused("must specify output directory or backup target"),
            (Some(_), Some(_)) => refused("cannot specify both output directory and backup target"),
            _ => Ok(()),
        }
    }

    /// Whose it is, if nobody says, follows from who writes.
    fn compression(&self) -> Result<Compression, Refusal> {
        let (server, client) = (self.compress.strip_prefix("server-"), self.compress.strip_prefix("client-"));
        match (server, client) {
            (Some(text), _) => Ok(servers(text)),
            (None, None) if self.target.is_some() => Ok(servers(&self.compress)),
            (None, client) => ours(client.unwrap_or(&self.compress)).map(Compression::Ours).map_err(Refusal::Value),
        }
    }

    fn check_wal(&self, compression: &Compression) -> Result<(), Refusal> {
        let refused = |message: &str| Err(Refusal::Usage(message.to_owned()));
        let streams = self.wal == Wal::Stream;
        match compression {
            Compression::Ours(_) if self.target.is_some() => {
                refused("client-side compression is not possible when a backup target is specified")
            }
            Compression::Ours(Some(_)) if !self.is_tar() => refused("only tar mode backups can be compressed"),
            _ if self.target.is_some() && streams => {
                refused("WAL cannot be streamed when a backup target is specified")
            }
            _ if self.is_tar() && streams && self.directory.as_deref() == Some(Path::new("-")) => {
                refused("cannot stream write-ahead logs in tar mode to stdout")
            }
            _ if self.slot.is_some() && !streams => refused("replication slots can only be used with WAL streaming"),
            _ if self.slot.is_some() && self.no_slot => refused("--no-slot cannot be used with slot name"),
            _ if self.slot.is_none() && self.create_slot => {
                refused("--create-slot needs a slot to be specified using --slot")
            }
            _ => Ok(()),
        }
    }

    fn check_rest(&self) -> Result<(), Refusal> {
        let refused = |message: &str| Err(Refusal::Usage(message.to_owned()));
        let both = |one: &str, other: &str| refused(&format!("{one} and {other} are incompatible options"));
        match &self.wal_directory {
            Some(_) if self.target.is_some() => {
                refused("WAL directory location cannot be specified along with a backup target")
            }
            Some(_) if self.is_tar() => refused("WAL directory location can only be specified in plain mode"),
            Some(path) if path.is_relative() => refused("WAL directory location must be an absolute path"),
            _ if self.progress && !self.estimate_size => both("--progress", "--no-estimate-size"),
            _ if !self.manifest && self.manifest_checksums.is_some() => both("--no-manifest", "--manifest-checksums"),
            _ if !self.manifest && self.manifest_force_encode => both("--no-manifest", "--manifest-force-encode"),
            _ => Ok(()),
        }
    }

    fn wal_method(&self) -> Result<WalMethod, Refusal> {
        Ok(match (self.wal, &self.slot) {
            (Wal::None, _) => WalMethod::None,
            (Wal::Fetch, _) => WalMethod::Fetch,
            (Wal::Stream, Some(name)) => {
                let name = slot(name).map_err(Refusal::Value)?;
                WalMethod::Stream(StreamSlot::Named { name, create: self.create_slot })
            }
            (Wal::Stream, None) if self.no_slot => WalMethod::Stream(StreamSlot::None),
            (Wal::Stream, None) => WalMethod::Stream(StreamSlot::Temporary),
        })
    }

    /// A name that no server knows is refused here, with a server's words.
    fn manifest_asked(&self) -> Result<Option<ManifestAsked>, Refusal> {
        let algorithm = match self.manifest_checksums.as_deref() {
            None => ManifestAlgorithm::default(),
            Some(name) => {
                name.parse().map_err(|_| Refusal::Value(format!("unrecognized checksum algorithm: \"{name}\"")))?
            }
        };
        Ok(self.manifest.then_some(ManifestAsked { algorithm, force_encode: self.manifest_force_encode }))
    }
}

#[cfg(test)]
mod tests;
