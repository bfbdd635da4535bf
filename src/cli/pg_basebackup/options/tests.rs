use super::*;
use crate::basebackup::ClientCompression;

/// `~` stands for a space within a word.
fn read(words: &str) -> Result<Asked, Refusal> {
    let words = std::iter::once("/usr/bin/pg_basebackup").chain(words.split(' ').filter(|word| !word.is_empty()));
    Asked::read(words.map(|word| word.replace('~', " ").into()).collect())
}

fn options(words: &str) -> Options {
    match read(words) {
        Ok(Asked::Backup(options)) => *options,
        other => panic!("{words}: {other:?}"),
    }
}

fn plain(words: &str) -> (PathBuf, Vec<(PathBuf, PathBuf)>, Option<PathBuf>) {
    match options(words).destination {
        Destination::Plain { directory, mappings, wal_directory } => (directory, mappings, wal_directory),
        other => panic!("{words}: {other:?}"),
    }
}

fn refusal(words: &str) -> Refusal {
    match read(words) {
        Err(refusal) => refusal,
        Ok(asked) => panic!("{words}: {asked:?}"),
    }
}

#[test]
fn what_holds_where_nothing_is_said() {
    let all = options("-D dir");
    assert_eq!(plain("-D dir"), ("dir".into(), vec![], None));
    assert_eq!(all.wal, WalMethod::Stream(StreamSlot::Temporary));
    assert_eq!(all.manifest, Some(ManifestAsked { algorithm: ManifestAlgorithm::Crc32c, force_encode: false }));
    assert_eq!((all.label.as_str(), all.checkpoint), ("pg_basebackup base backup", Checkpoint::Spread));
    assert_eq!((all.status_interval, all.sync), (Some(Duration::from_secs(10)), Sync::Fsync));
    assert!(all.verify && all.verify_checksums && all.estimate_size && all.clean);
    assert!(!all.recovery && !all.progress && !all.verbose);
    assert!(all.server_compression.is_none() && all.incremental.is_none() && all.max_rate.is_none());
}

#[test]
fn each_flag_is_taken() {
    let all = options("-D dir -c FAST -i old -l my~label -n -N -P -r 1M -R -s 3 -v --no-verify --no-verify-checksums");
    assert_eq!((all.label.as_str(), all.checkpoint), ("my label", Checkpoint::Fast));
    assert_eq!((all.incremental, all.max_rate), (Some("old".into()), MaxRate::new(1024)));
    assert_eq!((all.status_interval, all.sync), (Some(Duration::from_secs(3)), Sync::None));
    assert!(!all.verify && !all.verify_checksums && !all.clean && all.recovery && all.progress && all.verbose);
    assert!(!options("-D dir --no-estimate-size").estimate_size);
    assert_eq!(options("-D dir -c fast --checkpoint=Spread").checkpoint, Checkpoint::Spread);
    assert_eq!(options("-D dir --sync-method=syncfs").sync, Sync::Syncfs);
    assert_eq!(options("-D dir --sync-method fsync --no-sync").sync, Sync::None);
    // The exact name counts, not what it begins.
    assert!(options("-D dir --no-verify").verify_checksums);
    let connection = options("-D dir -d one -h two -p 3 -U four -W -w").connection;
    assert_eq!((connection.dbname.as_deref(), connection.host.as_deref()), (Some("one"), Some("two")));
    assert_eq!((connection.port.as_deref(), connection.username.as_deref()), (Some("3"), Some("four")));
    assert!(connection.no_password && !connection.password);
    assert!(options("-D dir -w -W").connection.password);
}

#[test]
fn manifests() {
    let manifest = |words: &str| options(&format!("-D dir {words}")).manifest;
    assert_eq!(manifest("--no-manifest"), None);
    let sha = ManifestAsked { algorithm: ManifestAlgorithm::Sha256, force_encode: true };
    assert_eq!(manifest("--manifest-checksums=sha256 --manifest-force-encode"), Some(sha));
    let none = ManifestAsked { algorithm: ManifestAlgorithm::None, force_encode: false };
    assert_eq!(manifest("--manifest-checksums NONE"), Some(none));
}

#[test]
fn ways_of_the_wal() {
    for (words, wal) in [
        ("-X none", WalMethod::None),
        ("-Xn", WalMethod::None),
        ("-X f", WalMethod::Fetch),
        ("--wal-method=fetch", WalMethod::Fetch),
        ("-X fetch -X s", WalMethod::Stream(StreamSlot::Temporary)),
        ("-X stream --no-slot", WalMethod::Stream(StreamSlot::None)),
        ("-X none --no-slot", WalMethod::None),
    ] {
        assert_eq!(options(&format!("-D dir {words}")).wal, wal, "{words}");
    }
    let named = |create| StreamSlot::Named { name: "one".parse().unwrap(), create };
    assert_eq!(options("-D dir -S one").wal, WalMethod::Stream(named(false)));
    assert_eq!(options("-D dir -C --slot one").wal, WalMethod::Stream(named(true)));
}

#[test]
fn places() {
    assert_eq!(plain("-D - -Fp").0, Path::new("-"));
    assert_eq!(plain("-D dir --target client").0, Path::new("dir"));
    assert!(
        matches!(options("-D dir -Ft").destination, Destination::Tar { directory, compression: None } if directory == Path::new("dir"))
    );
    assert!(matches!(
        options("-D - --format=tar -X fetch").destination,
        Destination::StandardOutput { compression: None }
    ));
    for (words, name, path) in [
        ("-t blackhole", "blackhole", None),
        ("-t server:/a:b", "server", Some("/a:b")),
        ("-t server:", "server", Some("")),
        ("--target=mine", "mine", None),
    ] {
        let destination = options(&format!("{words} -X fetch")).destination;
        let Destination::Server(target) = destination else { panic!("{words}: {destination:?}") };
        assert_eq!((target.name.as_str(), target.detail.as_deref()), (name, path), "{words}");
    }
    assert_eq!(plain("-D dir --waldir=/a//b/./c/../d/").2, Some("/a/b/d".into()));
}

#[test]
fn tablespaces() {
    for (word, old, new) in [
        ("/a=/b", "/a", "/b"),
        ("/a//x/=/b/./y/", "/a/x", "/b/y"),
        (r"/a\=1=/b\=2", "/a=1", "/b=2"),
        (r"/a\b=/c\\=d", r"/a\b", r"/c\=d"),
        ("/a~b=/c", "/a b", "/c"),
    ] {
        assert_eq!(plain(&format!("-D dir -T {word}")).1, [(old.into(), new.into())], "{word}");
    }
    assert_eq!(plain("-D dir -T /a=/b --tablespace-mapping=/c=/d").1.len(), 2);
}

#[test]
fn who_compresses() {
    let ours = |words: &str| match options(&format!("-D dir -Ft {words}")).destination {
        Destination::Tar { compression, .. } => compression,
        other => panic!("{other:?}"),
    };
    assert_eq!(ours("-z"), Some(ClientCompression::Gzip { level: None }));
    assert_eq!(ours("-z -Z 0"), None);
    assert_eq!(ours("-Z none"), None);
    assert_eq!(ours("-Z 5"), Some(ClientCompression::Gzip { level: Some(5) }));
    assert_eq!(ours("-Z client-lz4:12"), Some(ClientCompression::Lz4 { level: Some(12) }));
    let zstd = ClientCompression::Zstd { level: Some(-7), workers: 4, long: true };
    assert_eq!(ours("--compress=zstd:level=-7,workers=4,long"), Some(zstd));
    assert_eq!(ours("-Z zstd"), Some(ClientCompression::Zstd { level: None, workers: 0, long: false }));
    for (words, method, detail) in [
        ("-D dir -Z server-gzip", "gzip", None),
        ("-D dir -Ft -Z server-zstd:level=1,workers=2", "zstd", Some("level=1,workers=2")),
        // What a server can do only it knows.
        ("-D dir -Z server-squish:hard", "squish", Some("hard")),
        ("-D dir -Z server-7", "gzip", Some("7")),
        ("-t blackhole -X none -Z lz4", "lz4", None),
        ("-t blackhole -X none -z", "gzip", None),
    ] {
        let server = options(words).server_compression.unwrap();
        assert_eq!((server.name.as_str(), server.detail.as_deref()), (method, detail), "{words}");
    }
    assert!(options("-t blackhole -X none").server_compression.is_none_or(|server| server.name == "none"));
}

#[test]
fn help_and_version_come_first() {
    for words in ["--help", "-?", "--help -x"] {
        assert!(matches!(read(words), Ok(Asked::Help)), "{words}");
    }
    for words in ["--version", "-V", "-V --bogus"] {
        assert!(matches!(read(words), Ok(Asked::Version)), "{words}");
    }
    for words in ["-v --help", "-D dir --version"] {
        assert_eq!(refusal(words), Refusal::Misplaced, "{words}");
    }
    let complaint = Refusal::Complaint("/usr/bin/pg_basebackup: invalid option -- 'x'".to_owned());
    assert_eq!(refusal("-D dir -x"), complaint);
}

#[test]
fn what_does_not_fit_together() {
    for (words, message) in [
        ("", "must specify output directory or backup target"),
        ("-t client", "must specify output directory or backup target"),
        ("-D dir x y", "too many command-line arguments (first is \"x\")"),
        ("-D dir -t blackhole", "cannot specify both output directory and backup target"),
        ("-t blackhole -Ft", "cannot specify both format and backup target"),
        ("-D dir -t server:/x -Fp", "cannot specify both format and backup target"),
        ("-t blackhole", "WAL cannot be streamed when a backup target is specified"),
        ("-t server:/x -X stream", "WAL cannot be streamed when a backup target is specified"),
        (
            "-t blackhole -X none -Z client-gzip",
            "client-side compression is not possible when a backup target is specified",
        ),
        (
            "-t blackhole -X none -Z client-none",
            "client-side compression is not possible when a backup target is specified",
        ),
        ("-D dir -z", "only tar mode backups can be compressed"),
        ("-D dir -Fp -Z zstd", "only tar mode backups can be compressed"),
        ("-D - -Ft", "cannot stream write-ahead logs in tar mode to stdout"),
        ("-D dir -X none -S one", "replication slots can only be used with WAL streaming"),
        ("-D dir -X fetch -S one -C", "replication slots can only be used with WAL streaming"),
        ("-D dir --no-slot -S one", "--no-slot cannot be used with slot name"),
        ("-D dir --no-slot -S one -C", "--no-slot cannot be used with slot name"),
        ("-D dir -C", "--create-slot needs a slot to be specified using --slot"),
        ("-D dir -C --no-slot", "--create-slot needs a slot to be specified using --slot"),
        ("-t blackhole -X none --waldir=/x", "WAL directory location cannot be specified along with a backup target"),
        ("-D dir -Ft --waldir=/x", "WAL directory location can only be specified in plain mode"),
        ("-D dir --waldir=x/y", "WAL directory location must be an absolute path"),
        ("-D dir -P --no-estimate-size", "--progress and --no-estimate-size are incompatible options"),
        (
            "-D dir --no-manifest --manifest-checksums=none",
            "--no-manifest and --manifest-checksums are incompatible options",
        ),
        (
            "-D dir --no-manifest --manifest-force-encode",
            "--no-manifest and --manifest-force-encode are incompatible options",
        ),
    ] {
        assert_eq!(refusal(words), Refusal::Usage(message.to_owned()), "{words}");
    }
}

#[test]
fn values_that_make_no_sense() {
    for (words, message) in [
        ("-F x", "invalid output format \"x\", must be \"plain\" or \"tar\""),
        ("-c slow", "invalid checkpoint argument \"slow\", must be \"fast\" or \"spread\""),
        ("-X all", "invalid wal-method option \"all\", must be \"fetch\", \"stream\", or \"none\""),
        ("-r 1", "transfer rate \"1\" is out of range"),
        ("-s 1x", "invalid value \"1x\" for option -s/--status-interval"),
        ("-s -1", "-s/--status-interval must be in range 0..2147483"),
        ("--sync-method=hope", "unrecognized sync method: hope"),
        ("-T foo", "invalid tablespace mapping format \"foo\", must be \"OLDDIR=NEWDIR\""),
        ("-T /a=", "invalid tablespace mapping format \"/a=\", must be \"OLDDIR=NEWDIR\""),
        ("-T =/a", "invalid tablespace mapping format \"=/a\", must be \"OLDDIR=NEWDIR\""),
        ("-T /a=/b=/c", "multiple \"=\" signs in tablespace mapping"),
        ("-T a=/b", "old directory is not an absolute path in tablespace mapping: a"),
        ("-T /a=b", "new directory is not an absolute path in tablespace mapping: b"),
        // Before what is wrong as a whole.
        ("-T a=b -X all", "old directory is not an absolute path in tablespace mapping: a"),
        ("-D dir -Z squish", "unrecognized compression algorithm: \"squish\""),
        ("-D dir -Z client-squish:hard", "unrecognized compression algorithm: \"squish\""),
        (
            "-D dir -Z none:1",
            "invalid compression specification: compression algorithm \"none\" does not accept a compression level",
        ),
        ("-D dir -Ft -Z zstd:workers=-1", "could not set compression worker count to -1: Parameter is out of bound"),
        ("-D dir -S Slot", "replication slot name \"Slot\" contains invalid character"),
        ("-D dir --manifest-checksums=bogus", "unrecognized checksum algorithm: \"bogus\""),
    ] {
        assert_eq!(refusal(words), Refusal::Value(message.to_owned()), "{words}");
    }
}
