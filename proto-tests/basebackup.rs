//! Base backups from servers that lie, or die: an error, nothing outside of the target touched, nothing left.

#![allow(clippy::disallowed_methods, reason = "a test makes its own files")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use walhold::basebackup::{BaseBackupError, Destination, Done, Event, Options, Sync, WalMethod, basebackup};
use walhold::disk::Real;
use walhold::image::{Compared, ControlFile, ManifestAlgorithm};
use walhold::protocol::{Checkpoint, ManifestAsked};
use walhold::receive::Upstream;

use crate::server::{Server, columns, complete, copy_data, copy_done, copy_out, error, ready, row, single_row};
use crate::wal::Log;

pub(crate) const CONTROL: &[u8] = include_bytes!("captured/pg_control-17");
pub(crate) const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n\
    BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-01-01 00:00:00 UTC\nLABEL: x\nSTART TIMELINE: 1\n";

/// A member of an archive: name, type, link target, content, and the size that the header says.
pub(crate) type Member = (&'static str, u8, &'static str, Vec<u8>, u64);

pub(crate) fn file(name: &'static str, content: &[u8]) -> Member {
    (name, b'0', "", content.to_vec(), content.len() as u64)
}

fn link(name: &'static str, target: &'static str) -> Member {
    (name, b'2', target, Vec::new(), 0)
}

pub(crate) fn dir(name: &'static str) -> Member {
    (name, b'5', "", Vec::new(), 0)
}

/// What every data directory has.
pub(crate) fn usual() -> Vec<Member> {
    vec![
        file("backup_label", LABEL.as_bytes()),
        dir("./pg_wal/archive_status"),
        dir("pg_tblspc"),
        file("base/1/1259", &[7; 20_000]),
        file("postgresql.auto.conf", b"a = 1\n"),
        file("PG_VERSION", b"17\n"),
        file("global/pg_control", CONTROL),
    ]
}

pub(crate) fn archive(members: &[Member]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, target, content, size) in members {
        let mut block = [0_u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..124].copy_from_slice(b"0000600 0004000 0002000 ");
        if *size < 1 << 33 {
            block[124..136].copy_from_slice(format!("{size:011o} ").as_bytes());
        } else {
            block[124] = 0x80;
            block[128..136].copy_from_slice(&size.to_be_bytes());
        }
        block[136..148].copy_from_slice(b"15267613423 ");
        block[156] = *kind;
        block[157..157 + target.len()].copy_from_slice(target.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(block);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend([0; 1024]);
    bytes
}

pub(crate) fn system_id() -> u64 {
    ControlFile::parse(CONTROL).unwrap().system_identifier
}

/// The manifest of these members.
fn manifest(members: &[Member]) -> String {
    manifest_from(members, "0/2000028", "0/2000100")
}

/// The same of a backup with this start and end.
pub(crate) fn manifest_from(members: &[Member], start: &str, end: &str) -> String {
    let files: Vec<_> = members.iter().filter(|member| member.1 == b'0').map(listed).collect();
    sealed(&files.join(",\n"), start, end)
}

fn listed((name, _, _, content, _): &Member) -> String {
    let sum: String = crc32c::crc32c(content).to_le_bytes().iter().map(|b| format!("{b:02x}")).collect();
    let size = content.len();
    format!(
        "{{ \"Path\": \"{name}\", \"Size\": {size}, \"Last-Modified\": \"2026-01-01 00:00:00 GMT\", \
         \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{sum}\" }}"
    )
}

fn sealed(files: &str, start: &str, end: &str) -> String {
    let body = format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {},\n\"Files\": [\n{files}\n],\n\
         \"WAL-Ranges\": [\n{{ \"Timeline\": 1, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}\n],\n",
        system_id()
    );
    let sum: String = Sha256::digest(&body).iter().map(|b| format!("{b:02x}")).collect();
    format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n")
}

/// How the server ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Good,
    /// It says that pages are damaged, after it has sent them.
    Damaged,
    /// The connection is cut after so many of the messages of the copy.
    Cut(usize),
    /// It falls silent after so many of them.
    Silent(usize),
}

/// What the server says of a tablespace, and its archive.
#[derive(Clone, Default)]
struct Tablespace {
    location: String,
    archive: Vec<u8>,
}

struct Scene {
    folder: tempfile::TempDir,
    options: Options,
    base: Vec<u8>,
    manifest: String,
    tablespace: Option<Tablespace>,
    end: End,
    /// The clock leaps over every wait in the copy.
    hurry: bool,
}

impl Scene {
    fn new(plain: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("target");
        let destination = if plain {
            Destination::Plain { directory, mappings: Vec::new(), wal_directory: None }
        } else {
            Destination::Tar { directory, compression: None }
        };
        let options = Options {
            conninfo: crate::server::conninfo("host=127.0.0.1 user=tester", None),
            application_name: "test".into(),
            label: "x".into(),
            checkpoint: Checkpoint::Fast,
            max_rate: None,
            destination,
            wal: WalMethod::None,
            status_interval: None,
            server_compression: None,
            manifest: Some(ManifestAsked { algorithm: ManifestAlgorithm::Crc32c, force_encode: false }),
            incremental: None,
            verify_checksums: true,
            verify: true,
            estimate_size: false,
            recovery: false,
            sync: Sync::Fsync,
            clean: true,
        };
        let (base, manifest) = (archive(&usual()), manifest(&usual()));
        Self { folder, options, base, manifest, tablespace: None, end: End::Good, hurry: false }
    }

    fn with(plain: bool, members: &[Member]) -> Self {
        Self { base: archive(members), manifest: manifest(members), ..Self::new(plain) }
    }

    fn target(&self) -> std::path::PathBuf {
        self.folder.path().join("target")
    }

    fn names(&self) -> Vec<String> {
        names(self.folder.path())
    }

    /// Runs it; what was told by name.
    async fn run(&self) -> (Result<Done, BaseBackupError>, Vec<String>) {
        let mut messages = Vec::new();
        let mut rows = Vec::new();
        if let Some(tablespace) = &self.tablespace {
            rows.push(row(&[Some("16400"), Some(&tablespace.location), None]));
            messages.push(copy_data(format!("n16400.tar\0{}\0", tablespace.location).as_bytes()));
            messages.push(copy_data(&[b"d", &tablespace.archive[..]].concat()));
        }
        messages.push(copy_data(b"nbase.tar\0\0"));
        messages.extend(self.base.chunks(3000).map(|part| copy_data(&[b"d", part].concat())));
        if self.options.manifest.is_some() {
            messages.push(copy_data(b"m"));
            let parts = self.manifest.as_bytes().chunks(1_000_000);
            messages.extend(parts.map(|part| copy_data(&[b"d", part].concat())));
        }
        messages.push(copy_done());
        messages.push([columns(2), row(&[Some("0/2000100"), Some("1")]), complete("SELECT")].concat());
        let end = self.end;
        let server = Server::start(async move |mut peer| {
            peer.log_in("17.2").await;
            for (command, answer) in [
                ("IDENTIFY_SYSTEM", &[Some(&*system_id().to_string()), Some("1"), Some("0/2000000"), None][..]),
                ("SHOW \"wal_segment_size\"", &[Some("1MB")]),
                ("SHOW \"wal_sender_timeout\"", &[Some("1min")]),
                ("SHOW \"data_directory_mode\"", &[Some("0700")]),
            ] {
                peer.expect_query(command).await;
                peer.send(single_row(answer)).await;
            }
            let Some((b'Q', _backup)) = peer.next().await else { return };
            let began = [columns(2), row(&[Some("0/2000028"), Some("1")]), complete("SELECT")].concat();
            rows.push(row(&[None, None, None]));
            peer.send([began, columns(3), rows.concat(), complete("SELECT"), copy_out()].concat()).await;
            let whole = if let End::Cut(after) | End::Silent(after) = end { after } else { messages.len() };
            peer.send(messages[..whole.min(messages.len())].concat()).await;
            match end {
                End::Good => peer.send([complete("BASE_BACKUP"), ready()].concat()).await,
                End::Damaged => peer.send([error("ERROR", "XX001", "checksum failure"), ready()].concat()).await,
                End::Cut(_) => {}
                End::Silent(_) => assert!(peer.next().await.is_none(), "it talks to a server that is silent"),
            }
        })
        .await;
        let options = Options { conninfo: server.conninfo("sslmode=disable"), ..self.options.clone() };
        let upstream = Upstream::connect(&options.conninfo, "test").await.unwrap();
        let mut told = Vec::new();
        let hurry = self.hurry;
        let mut tell = |event| {
            if hurry && matches!(event, Event::Started { .. }) {
                tokio::time::pause();
            }
            told.push(name(&event));
        };
        let never = CancellationToken::new();
        let done = basebackup(Arc::new(Real::new()), upstream, &options, &never, &mut tell);
        let limit = Duration::from_secs(if hurry { 3600 } else { 20 });
        let done = tokio::time::timeout(limit, done).await;
        if hurry {
            tokio::time::resume();
        }
        let done = done.expect("it hangs");
        (done, told)
    }

    #[track_caller]
    fn refused(outcome: (Result<Done, BaseBackupError>, Vec<String>), words: &str) {
        let error = outcome.0.expect_err(words).to_string();
        assert!(error.contains(words), "{error:?}, not {words:?}");
    }
}

fn name(event: &Event) -> String {
    let text = format!("{event:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_is_right_is_laid_down() {
    let scene = Scene::new(true);
    let (done, told) = scene.run().await;
    let bytes = usual().iter().map(|member| member.3.len() as u64).sum();
    assert_eq!(done.unwrap().compared, Some(Compared { files: 5, bytes, by_checksum: 5 }));
    assert_eq!(told, ["WaitingForCheckpoint", "Started", "Progress", "Stop", "Syncing", "NamingManifest"]);
    assert_eq!(fs::read(scene.target().join("base/1/1259")).unwrap(), [7; 20_000]);
    assert_eq!(fs::read_to_string(scene.target().join("backup_manifest")).unwrap(), scene.manifest);
    assert!(!scene.target().join("backup_manifest.tmp").exists());

    let scene = Scene::new(false);
    scene.run().await.0.unwrap();
    assert_eq!(names(&scene.target()), ["backup_manifest", "base.tar"]);
    assert_eq!(fs::read(scene.target().join("base.tar")).unwrap(), scene.base);
}

#[tokio::test]
async fn p6_an_archive_that_leads_elsewhere_leaves_nothing() {
    let lying = |size| ("base/1/1", b'0', "", Vec::new(), size);
    for (member, words) in [
        (vec![file("../outside", b"x")], "upwards"),
        (vec![file("base/../../outside", b"x")], "upwards"),
        (vec![file("/tmp/outside", b"x")], "absolute"),
        (vec![link("pg_tblspc/1", "/tmp"), file("pg_tblspc/1/outside", b"x")], "symbolic link"),
        (vec![file("PG_VERSION", b"17\n")], "two members"),
        (vec![file("PG_VERSION/x", b"17\n")], "below a file"),
        (vec![lying(1 << 63)], "size"),
        (vec![lying(i64::MAX as u64)], "ends in the middle"),
        (vec![lying(5)], "end mark"),
        (vec![("base/1/1", b'1', "PG_VERSION", Vec::new(), 0)], "type"),
        (vec![file("pg_wal/000000010000000000000002", b"x")], "without being asked for WAL"),
    ] {
        for plain in [true, false] {
            let members = [usual(), member.clone()].concat();
            let scene = Scene::with(plain, &members);
            let outcome = scene.run().await;
            assert!(outcome.1.contains(&"Removing".to_owned()), "{words}");
            Scene::refused(outcome, words);
            assert_eq!(scene.names(), [""; 0], "{words}");
        }
    }
    // In a tar file a link is only a name; laid down it would lead away.
    let scene = Scene::with(true, &[usual(), vec![link("base/2", "/tmp")]].concat());
    Scene::refused(scene.run().await, "symbolic link named \"base/2\"");
    assert_eq!(scene.names(), [""; 0]);
}

#[tokio::test]
async fn p6_a_manifest_that_lies_leaves_nothing() {
    let truth = manifest(&usual());
    let files = |change: &dyn Fn(&mut Vec<Member>)| {
        let mut members = usual();
        change(&mut members);
        manifest(&members)
    };
    let all: Vec<_> = usual().iter().filter(|member| member.1 == b'0').map(listed).collect();
    for (manifest, words) in [
        (files(&|members| members[3].3[9] ^= 1), "\"base/1/1259\" has CRC32C"),
        (files(&|members| members[3].3.push(1)), "has 20000 bytes"),
        (files(&|members| drop(members.remove(3))), "not in the manifest"),
        (files(&|members| members.push(file("base/1/1260", b"x"))), "not in the backup"),
        (sealed(&all.join(",\n"), "0/2000028", "0/2000108"), "lists other WAL"),
        (sealed(&all.join(",\n"), "0/2000030", "0/2000100"), "lists other WAL"),
        (truth.replace("CRC32C", "CRC32D"), "its own checksum"),
        (truth[..truth.len() / 2].to_owned(), "its own checksum"),
    ] {
        for plain in [true, false] {
            let scene = Scene { manifest: manifest.clone(), ..Scene::new(plain) };
            Scene::refused(scene.run().await, words);
            assert_eq!(scene.names(), [""; 0], "{words}");
        }
    }
}

#[tokio::test]
async fn without_verifying_only_the_archive_itself_is_checked() {
    let lie = manifest(&[usual(), vec![file("base/1/1260", b"x")]].concat());
    let mut scene = Scene { manifest: lie, ..Scene::new(true) };
    scene.options.verify = false;
    assert_eq!(scene.run().await.0.unwrap().compared, None);
    let mut scene = Scene::new(false);
    scene.options.manifest = None;
    assert_eq!(scene.run().await.0.unwrap().compared, None);
    assert_eq!(names(&scene.target()), ["base.tar"]);
}

#[tokio::test]
async fn a_server_that_dies_leaves_nothing_or_what_was_asked_to_stay() {
    let messages = archive(&usual()).len().div_ceil(3000) + 5;
    for plain in [true, false] {
        for after in 0..messages {
            let scene = Scene { end: End::Cut(after), ..Scene::new(plain) };
            Scene::refused(scene.run().await, "connection to the server is lost");
            assert_eq!(scene.names(), [""; 0]);
        }
        // A directory that was there stays, and is empty again.
        let scene = Scene { end: End::Cut(5), ..Scene::new(plain) };
        fs::create_dir(scene.target()).unwrap();
        let outcome = scene.run().await;
        assert!(outcome.1.contains(&"Emptying".to_owned()), "{:?}", outcome.1);
        assert_eq!((scene.names(), names(&scene.target())), (vec!["target".to_owned()], vec![]));

        let mut scene = Scene { end: End::Cut(5), ..Scene::new(plain) };
        scene.options.clean = false;
        Scene::refused(scene.run().await, "lost");
        assert!(!names(&scene.target()).is_empty());
        // Nothing of it looks whole.
        assert!(!scene.target().join("backup_manifest").exists());
        assert!(!scene.target().join("global/pg_control").exists());
    }
}

#[tokio::test]
async fn a_server_that_falls_silent_is_given_up() {
    for plain in [true, false] {
        let mut scene = Scene { end: End::Silent(5), hurry: true, ..Scene::new(plain) };
        scene.options.wal = WalMethod::Fetch;
        Scene::refused(scene.run().await, "within 600 s");
        assert_eq!(scene.names(), [""; 0]);

        // What has failed here is not waited for.
        let members = [usual(), vec![file("../outside", b"x")]].concat();
        let messages = archive(&members).len().div_ceil(3000) + 1;
        let scene = Scene { end: End::Silent(messages), ..Scene::with(plain, &members) };
        Scene::refused(scene.run().await, "upwards");
        assert_eq!(scene.names(), [""; 0]);
    }
}

#[tokio::test]
async fn p6_a_manifest_longer_than_its_files_can_make_it_is_not_gathered() {
    let scene = Scene { manifest: " ".repeat(100 << 20), ..Scene::new(true) };
    Scene::refused(scene.run().await, "its manifest has no end");
    assert_eq!(scene.names(), [""; 0]);
}

#[tokio::test]
async fn damaged_pages_fail_it_and_what_was_copied_is_kept() {
    for plain in [true, false] {
        let scene = Scene { end: End::Damaged, ..Scene::new(plain) };
        let (done, told) = scene.run().await;
        assert!(done.unwrap_err().is_about_checksums());
        assert!(!told.iter().any(|event| event == "Removing"), "{told:?}");
        assert!(!names(&scene.target()).is_empty());
    }
}

#[tokio::test]
async fn a_target_that_is_in_use_is_left_alone() {
    for plain in [true, false] {
        let scene = Scene::new(plain);
        fs::create_dir(scene.target()).unwrap();
        fs::write(scene.target().join("mine"), "x").unwrap();
        Scene::refused(scene.run().await, "exists but is not empty");
        assert_eq!(names(&scene.target()), ["mine"]);
    }
}

#[tokio::test]
async fn a_tablespace_goes_only_where_it_may() {
    let scene = |location: &dyn Fn(&Path) -> String| {
        let scene = Scene::new(true);
        let archive = archive(&[file("PG_17_202406281/5/1", b"far")]);
        let location = location(scene.folder.path());
        let far = ("pg_tblspc/16400/PG_17_202406281/5/1", b'0', "", b"far".to_vec(), 3);
        let manifest = manifest(&[usual(), vec![far]].concat());
        Scene { tablespace: Some(Tablespace { location, archive }), manifest, ..scene }
    };
    let free = scene(&|folder| format!("{}/space", folder.display()));
    free.run().await.0.unwrap();
    assert_eq!(fs::read(free.folder.path().join("space/PG_17_202406281/5/1")).unwrap(), b"far");
    assert_eq!(fs::read_link(free.target().join("pg_tblspc/16400")).unwrap(), free.folder.path().join("space"));

    for inside in ["target/base", "target", "target/pg_tblspc/16400"] {
        let scene = scene(&|folder| format!("{}/{inside}", folder.display()));
        Scene::refused(scene.run().await, "lies in");
        assert_eq!(scene.names(), [""; 0]);
    }
    // By way of a link, by a way back, by a mapping, and as the place of the WAL.
    let by_link = scene(&|folder| format!("{}/link/target/x", folder.display()));
    std::os::unix::fs::symlink(".", by_link.folder.path().join("link")).unwrap();
    Scene::refused(by_link.run().await, "lies inside the other");
    assert_eq!(by_link.names(), ["link"]);
    let back = scene(&|folder| format!("{}/new/../target", folder.display()));
    Scene::refused(back.run().await, "lies inside the other");
    assert_eq!(back.names(), [""; 0]);
    for (new, wal) in [("target/x", None), ("wal", Some("wal")), ("wal/x", Some("wal")), ("space", Some("target/wal"))]
    {
        let mut scene = scene(&|_| "/far".to_owned());
        let folder = scene.folder.path();
        scene.options.destination = Destination::Plain {
            directory: folder.join("target"),
            mappings: vec![("/far".into(), folder.join(new))],
            wal_directory: wal.map(|wal| folder.join(wal)),
        };
        let outcome = scene.run().await;
        // What is known before is not found out after a checkpoint.
        assert_eq!(outcome.1.is_empty(), wal == Some("target/wal"), "{new}");
        Scene::refused(outcome, "lies inside the other");
        assert_eq!(scene.names(), [""; 0], "{new}");
    }
    // One in use is found before another is made, or even the directories above it.
    let mut mapped = scene(&|_| "/far".to_owned());
    let folder = mapped.folder.path().to_owned();
    mapped.options.destination = Destination::Plain {
        directory: folder.join("above/target"),
        mappings: vec![("/far".into(), folder.join("space"))],
        wal_directory: None,
    };
    fs::write(folder.join("space"), "mine").unwrap();
    Scene::refused(mapped.run().await, "exists but is not empty");
    assert_eq!(mapped.names(), ["space"]);

    let taken = scene(&|folder| format!("{}/space", folder.display()));
    fs::create_dir(taken.folder.path().join("space")).unwrap();
    fs::write(taken.folder.path().join("space/mine"), "x").unwrap();
    Scene::refused(taken.run().await, "exists but is not empty");
    assert_eq!(taken.names(), ["space"]);
    assert_eq!(names(&taken.folder.path().join("space")), ["mine"]);

    // One that was there and empty is empty again.
    let emptied = Scene { end: End::Cut(6), ..scene(&|folder| format!("{}/space", folder.display())) };
    fs::create_dir(emptied.folder.path().join("space")).unwrap();
    Scene::refused(emptied.run().await, "lost");
    assert_eq!(emptied.names(), ["space"]);
    assert_eq!(names(&emptied.folder.path().join("space")), [""; 0]);
}

/// A segment with the WAL of the backup, as long as a server's.
fn segment(change: impl FnOnce(&mut Log)) -> Vec<u8> {
    let mut log = Log::new(0x200_0000, 1 << 20, 1, system_id());
    log.record(10, 0, &[1; 152]);
    change(&mut log);
    log.bytes.resize(1 << 20, 0);
    log.bytes
}

fn whole_segment() -> Vec<u8> {
    segment(|log| {
        log.backup_end(0x200_0028);
        assert_eq!(log.at(), 0x200_0100);
        log.switch();
    })
}

#[tokio::test]
async fn p3_wal_that_comes_with_the_files_is_read() {
    const NAME: &str = "pg_wal/000000010000000000000020";
    let scene = |plain, wal: Vec<Member>| {
        let mut scene = Scene { manifest: manifest(&usual()), ..Scene::with(plain, &[usual(), wal].concat()) };
        scene.options.wal = WalMethod::Fetch;
        scene
    };
    for plain in [true, false] {
        let done = scene(plain, vec![file(NAME, &whole_segment())]).run().await.0.unwrap();
        assert!(done.wal && done.compared.is_some());
        let flipped = |at: usize| {
            let mut bytes = whole_segment();
            bytes[at] ^= 1;
            vec![file(NAME, &bytes)]
        };
        for (wal, words) in [
            (vec![], "it ends at 0/2000000"),
            (vec![file(NAME, &whole_segment()[..0xD8])], "it ends at 0/20000D8"),
            (flipped(0x60), "checksum"),
            (flipped(0xE0), "not valid"),
            (vec![file("pg_wal/000000010000000000000021", &whole_segment())], "it ends at 0/2000000"),
            (vec![file(NAME, &segment(|log| log.record(10, 0, &[2; 16])))], "no end-of-backup record"),
            (vec![file(NAME, &segment(|log| log.backup_end(0x200_0020)))], "no end-of-backup record"),
        ] {
            let scene = scene(plain, wal);
            Scene::refused(scene.run().await, words);
            assert_eq!(scene.names(), [""; 0], "{words}");
        }
    }
}
