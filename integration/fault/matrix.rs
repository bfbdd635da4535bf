//! The matrix: fault, how it was made, rounds, what was acknowledged, what was lost, how long it took to go
//! on, and what the operator was told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::Location;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use crate::room::Room;
use crate::servers::Server;

/// What came of one fault, on one server version.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What was broken, as an operator would say it: "the receiver is killed".
    pub(crate) fault: &'static str,
    /// How the test made it: "kill -9 at a random moment".
    pub(crate) how: String,
    /// How often.
    pub(crate) rounds: usize,
    /// Commits (or whatever else the row says in `how`) that had been acknowledged when they were compared.
    pub(crate) acknowledged: usize,
    /// How many of those did not come back.
    pub(crate) lost: usize,
    /// The longest time from the fault's end until work went on by itself or by the next start; `None` where
    /// nothing goes on.
    pub(crate) resumed: Option<Duration>,
    /// What walhold said ([`told`]), or, where a restart needs no word, "nothing: ...".
    pub(crate) told: String,
}

/// The kinds of faults, in the page's order: the file here that makes them, and what it is called there.
const KINDS: &[(&str, &str)] = &[
    ("killed", "Programs that are killed"),
    ("servers", "Servers that change underneath"),
    ("power", "Power that fails"),
    ("disk", "Disks that fail, fill up or hang"),
    ("inject", "Calls to the disk that fail"),
    ("network", "Networks that fail"),
    ("packets", "Links that fail"),
    ("flips", "Networks that change what they carry"),
];

/// The place of a kind in the page, and the fault in it.
type Key = (usize, &'static str);

/// The rows of a run, and what could not be tried in it.
#[derive(Debug, Default)]
pub(crate) struct Matrix {
    rows: Mutex<Vec<(usize, u32, Row)>>,
    skipped: Mutex<Vec<String>>,
}

impl Matrix {
    /// Takes a row. One in which something was lost is taken too, and then fails its test.
    #[track_caller]
    pub(crate) fn take(&self, major: u32, row: Row) {
        let file = Path::new(Location::caller().file()).file_stem().and_then(|stem| stem.to_str());
        let kind = KINDS.iter().position(|(stem, _)| Some(*stem) == file);
        let kind = kind.unwrap_or_else(|| panic!("no kind of fault is made in {file:?}"));
        let (lost, fault) = (row.lost, row.fault);
        assert!(row.rounds > 0, "{fault}: never made");
        self.rows.lock().unwrap().push((kind, major, row));
        assert_eq!(lost, 0, "{fault}: acknowledged, and lost");
    }

    /// Notes a fault that this machine does not let us make.
    pub(crate) fn skip(&self, major: u32, name: &str, reason: &str) {
        self.skipped.lock().unwrap().push(format!("`{name}` with PostgreSQL {major}: {reason}"));
    }

    /// Prints the sums; writes the page where `WALHOLD_FAULTS_PAGE` names one, unless a test has failed.
    pub(crate) fn close(&self, servers: &[Server], failed: bool) {
        let merged = merge(&self.rows.lock().unwrap());
        if merged.is_empty() {
            return;
        }
        let (rounds, acknowledged, lost) = sums(&merged);
        println!("faults: {} kinds, {rounds} rounds, {acknowledged} acknowledged, {lost} lost", merged.len());
        if let Some(page) = std::env::var_os("WALHOLD_FAULTS_PAGE").filter(|page| !page.is_empty() && !failed) {
            let text = self::page(&merged, servers, &self.skipped.lock().unwrap());
            std::fs::write(Path::new(&page), text).expect("write the page of faults");
        }
    }
}

/// The rows of one fault on several versions are one.
fn merge(rows: &[(usize, u32, Row)]) -> BTreeMap<Key, (Vec<u32>, Row)> {
    let mut merged: BTreeMap<Key, (Vec<u32>, Row)> = BTreeMap::new();
    for (kind, major, row) in rows {
        match merged.get_mut(&(*kind, row.fault)) {
            None => drop(merged.insert((*kind, row.fault), (vec![*major], row.clone()))),
            Some((majors, whole)) => {
                majors.push(*major);
                whole.rounds += row.rounds;
                whole.acknowledged += row.acknowledged;
                whole.lost += row.lost;
                whole.resumed = whole.resumed.max(row.resumed);
            }
        }
    }
    merged
}

fn sums(rows: &BTreeMap<Key, (Vec<u32>, Row)>) -> (usize, usize, usize) {
    rows.values().fold((0, 0, 0), |(rounds, acknowledged, lost), (_, row)| {
        (rounds + row.rounds, acknowledged + row.acknowledged, lost + row.lost)
    })
}

fn page(rows: &BTreeMap<Key, (Vec<u32>, Row)>, servers: &[Server], skipped: &[String]) -> String {
    let (rounds, acknowledged, lost) = sums(rows);
    let mut page = format!(
        "# What was broken, and what came of it\n\n\
         **{rounds} rounds, {acknowledged} acknowledged, {lost} lost.** PostgreSQL {}.\n\n\
         This page is written by `integration/faults`, and `integration/faults --rounds 200` makes it again. It breaks \
         real servers, disks and networks while writers commit, restores what the repository holds, starts a server on \
         it, and looks for every commit that had been acknowledged.\n\n\
         *Went on after* is the longest time from the end of the fault until commits, or whatever the row is about, went \
         on. What the operator was told is what stood in the log, of one round; positions and times differ in each.\n",
        listed(servers.iter().map(|server| server.major).collect())
    );
    for (kind, (_, title)) in KINDS.iter().enumerate() {
        let rows: Vec<_> = rows.range((kind, "")..(kind + 1, "")).map(|(_, row)| row).collect();
        if rows.is_empty() {
            continue;
        }
        let _ = write!(
            page,
            "\n## {title}\n\n\
             | fault | how it was made | PostgreSQL | rounds | acknowledged | lost | went on after | what the operator was told |\n\
             |---|---|---|--:|--:|--:|--:|---|\n"
        );
        rows.into_iter().for_each(|(majors, row)| line(&mut page, majors, row));
    }
    if !skipped.is_empty() {
        page += "\n## Not made in this run\n\n";
        let mut skipped = skipped.to_vec();
        skipped.sort();
        for reason in skipped {
            let _ = writeln!(page, "- {reason}");
        }
    }
    page
}

fn line(page: &mut String, majors: &[u32], row: &Row) {
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', "<br>");
    let resumed = row.resumed.map_or_else(|| "-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
    let _ = writeln!(
        page,
        "| {} | {} | {} | {} | {} | {} | {resumed} | {} |",
        cell(row.fault),
        cell(&row.how),
        listed(majors.to_vec()),
        row.rounds,
        row.acknowledged,
        row.lost,
        cell(&row.told)
    );
}

/// Versions, each once and in order.
fn listed(mut majors: Vec<u32>) -> String {
    majors.sort_unstable();
    majors.dedup();
    majors.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// The line of what a program wrote to standard error that has `word`, without its time, and with the room's
/// folder shortened.
#[track_caller]
pub(crate) fn told(room: &Room, err: &str, word: &str) -> String {
    let line = err.lines().rfind(|line| line.contains(word)).unwrap_or_else(|| panic!("no {word:?} in:\n{err}"));
    let folder = format!("{}/", room.path("").display()).replace("//", "/");
    let line = line.replace(&folder, "");
    let logged = |level: &str| line.split_once(level).filter(|(time, _)| time.trim().ends_with('Z'));
    let logged = [" INFO ", " WARN ", " ERROR "].into_iter().find_map(logged);
    let refused = line.split_once("walhold: ").filter(|(before, _)| before.is_empty());
    let words = logged.or(refused).map_or(line.as_str(), |(_, rest)| rest).split_whitespace();
    format!("`{}`", words.collect::<Vec<_>>().join(" "))
}
