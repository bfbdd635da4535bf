//! Clusters of many files, and peers that send without end: memory stays where it was.

use sha2::{Digest, Sha256};

use super::backups::{backup_of, begun, data, member, oblige, pieces};
use super::*;

const CONTROL: &[u8] = include_bytes!("../../captured/pg_control-17");
/// More than fit in memory, as the program keeps them. `WALHOLD_TEST_FILES` may be more.
const FILES: u64 = 10_000;
/// Members of a piece: servers send 32 KiB at a time.
const MEMBERS: u64 = 60;
/// What memory may differ by between so many files and half of them.
const MORE: u64 = 8 << 10;

fn many() -> u64 {
    std::env::var("WALHOLD_TEST_FILES").ok().and_then(|files| files.parse().ok()).unwrap_or(FILES)
}

/// The control file of the cluster that the scripts play.
fn control() -> Vec<u8> {
    let mut control = CONTROL.to_vec();
    control[..8].copy_from_slice(&77_u64.to_le_bytes());
    let sum = crc32c::crc32c(&control[..288]);
    control[288..292].copy_from_slice(&sum.to_le_bytes());
    control
}

/// A log with one backup in it, from the first position to the second.
fn log_with_backup() -> (Log, u64, u64) {
    let mut log = log_to(START + 300_000);
    let start = log.next_record();
    log.record(0, 0x10, &[1; 90]);
    log.record(10, 0, &vec![5; 3000]);
    log.backup_end(start);
    let stop = log.at();
    log.record(10, 0, &vec![7; 100_000]);
    (log, start, stop)
}

/// What the files that make a cluster of the many are.
fn usual(start: u64) -> Vec<(String, Vec<u8>)> {
    let label = format!(
        "START WAL LOCATION: {} (file 000000010000000000000003)\nCHECKPOINT LOCATION: {}\nBACKUP METHOD: streamed\n\
         BACKUP FROM: primary\nSTART TIME: 2026-01-01 00:00:00 UTC\nLABEL: x\nSTART TIMELINE: 1\n",
        text(start),
        text(start)
    );
    let files =
        [("backup_label", label.into_bytes()), ("PG_VERSION", b"17\n".to_vec()), ("global/pg_control", control())];
    files.map(|(name, content)| (name.to_owned(), content)).to_vec()
}

fn name(number: u64) -> String {
    // Long, and in no order that would help.
    format!("base/{}/{:060}", number % 1000, number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn line(name: &str, content: &[u8]) -> String {
    let sum: String = crc32c::crc32c(content).to_le_bytes().iter().map(|b| format!("{b:02x}")).collect();
    format!(
        "{{ \"Path\": \"{name}\", \"Size\": {}, \"Last-Modified\": \"2026-01-01 00:00:00 GMT\", \
         \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{sum}\" }}",
        content.len()
    )
}

/// The copy of a cluster of so many empty files, piece by piece.
fn cluster(files: u64, start: u64, stop: u64) -> impl Iterator<Item = Vec<u8>> + Send {
    let mut more = Vec::new();
    let members = (0..files).step_by(60).map(move |first| {
        let members: Vec<_> = (first..files.min(first + MEMBERS)).map(|n| member(&name(n), b'0', 0, b"")).collect();
        data(&members.concat())
    });
    let last: Vec<u8> = usual(start).iter().flat_map(|(name, c)| member(name, b'0', c.len() as u64, c)).collect();
    more.extend([data(&[last, vec![0; 1024]].concat()), copy_data(b"m")]);
    let mut hash = Sha256::new();
    let mut part = move |text: String| {
        hash.update(&text);
        (data(text.as_bytes()), hash.clone())
    };
    let mut lines =
        usual(start).into_iter().map(|(name, c)| line(&name, &c)).chain((0..files).map(|n| line(&name(n), b"")));
    let mut state = 0;
    let manifest = std::iter::from_fn(move || {
        let text = match state {
            0 => {
                "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 77,\n\"Files\": [\n".to_owned()
                    + &lines.next().unwrap()
            }
            1 => {
                let some: String = lines.by_ref().take(200).map(|line| format!(",\n{line}")).collect();
                if some.is_empty() {
                    state = 2;
                    format!(
                        "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": 1, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}\n],\n",
                        text(start),
                        text(stop)
                    )
                } else {
                    some
                }
            }
            _ => return None,
        };
        state = state.max(1);
        let (piece, hash) = part(text);
        if state < 2 {
            return Some(piece);
        }
        state = 3;
        let sum: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Some([piece, data(format!("\"Manifest-Checksum\": \"{sum}\"}}\n").as_bytes())].concat())
    });
    let end = [columns(2), row(&[Some(&text(stop)), Some("1")]), complete("SELECT"), complete("BASE_BACKUP"), ready()];
    members.chain(more).chain(manifest).chain([[copy_done(), end.concat()].concat()])
}

/// A server of a cluster; each of its copies is of so many files.
async fn serve(mut door: Door, files: u64) {
    let mut serving = tokio::task::JoinSet::new();
    let (log, start, stop) = log_with_backup();
    let log = Arc::new(log);
    loop {
        let peer = door.next().await;
        let copy = begun(start).chain(cluster(files, start, stop));
        serving.spawn(oblige(peer, Arc::clone(&log), pieces(copy)));
    }
}

/// Root restores for another user, who must be able to read the repository.
fn give_away(home: &Path) {
    let chmod = Command::new("chmod").args(["-R", "go+rX", "."]).current_dir(home).status().unwrap();
    assert!(chmod.success());
}

/// The most memory that each of these commands had, in KiB, one after the other in the same folder.
async fn peaks(files: u64, commands: &'static [&'static [&'static str]]) -> Vec<u64> {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_owned();
    let server = Server::serve(async move |door| serve(door, files).await).await;
    let conninfo = format!("host=127.0.0.1 port={} user=tester {PLAIN}", server.port());
    let peaks = tokio::task::spawn_blocking(move || {
        let run_one = |command: &&[&str]| {
            let all: Vec<_> = command.iter().map(|word| if *word == "CONN" { &*conninfo } else { *word }).collect();
            let began = Instant::now();
            if all[0] == "restore" {
                give_away(&home);
            }
            let ended = run_for(END + Duration::from_millis(files), &all, &home);
            assert_eq!(ended.code, Some(0), "{all:?}: {ended:?}");
            eprintln!("{files} files, {}: {} KiB, {:?}", all[0], ended.peak, began.elapsed());
            ended.peak
        };
        commands.iter().map(run_one).collect()
    });
    let peaks = peaks.await.unwrap();
    server.finish_within(Duration::from_millis(1)).await;
    peaks
}

async fn does_not_grow(commands: &'static [&'static [&'static str]], limit: u64) {
    let few = peaks(many() / 2, commands).await;
    let many = peaks(many(), commands).await;
    for ((few, many), command) in few.into_iter().zip(many).zip(commands) {
        assert!(many < limit && many < few + MORE, "{command:?}: {few} KiB, and {many} KiB with twice the files");
    }
}

#[tokio::test]
async fn many_files_are_backed_up_verified_and_restored_in_the_memory_of_few() {
    const COMMANDS: &[&[&str]] = &[
        &["backup", "--repo", "repo", "-w", "-d", "CONN"],
        &["verify", "--repo", "repo"],
        &["restore", "--repo", "repo", "-D", "data", "--owner", "65534"],
    ];
    does_not_grow(COMMANDS, MEMORY).await;
}

#[tokio::test]
async fn many_files_are_copied_in_the_memory_of_few() {
    const COMMANDS: &[&[&str]] = &[
        &["basebackup", "-D", "plain", "-X", "none", "--no-sync", "-w", "-d", "CONN"],
        &["basebackup", "-D", "tar", "-F", "tar", "-X", "none", "--no-sync", "-w", "-d", "CONN"],
    ];
    does_not_grow(COMMANDS, MEMORY).await;
}

/// What has gone to disk is held against what follows, too.
#[tokio::test]
async fn p6_of_many_files_one_comes_twice_or_differs() {
    let (_, start, stop) = log_with_backup();
    let files = FILES;
    let twice = cluster(files, start, stop);
    let again = data(&member(&name(7), b'0', 0, b""));
    let at = usize::try_from(files / MEMBERS).unwrap();
    backup_of(twice.take(at).chain([again]).chain(cluster(files, start, stop).skip(at)), "two members named \"base/7/")
        .await;
    let below = data(&member(&format!("{}/x", name(7)), b'0', 0, b""));
    backup_of(
        cluster(files, start, stop).take(at).chain([below]).chain(cluster(files, start, stop).skip(at)),
        "two members named",
    )
    .await;
    // One that no manifest lists, and one that is missing.
    let extra = data(&member("base/5/extra", b'0', 0, b""));
    let pieces = [extra].into_iter().chain(cluster(files, start, stop).skip(1));
    backup_of(pieces, "is in the manifest and not in the backup (and 60 more files differ)").await;
}
