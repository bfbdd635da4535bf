#![allow(dead_code)]
//! The matrix: fault, how it was made, rounds, what was acknowledged, what was lost, how long it took to go
//! on, and what the operator was told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
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

/// The rows of a run, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Matrix(Mutex<Vec<(u32, Row)>>);

impl Matrix {
    /// Takes a row. One in which something was lost is taken too, and then fails its test.
    #[track_caller]
    pub(crate) fn take(&self, major: u32, row: Row) {
        let (lost, fault) = (row.lost, row.fault);
        self.0.lock().unwrap().push((major, row));
        assert_eq!(lost, 0, "{fault}: acknowledged, and lost");
    }

    /// Prints the sums, and writes the page where `WALHOLD_FAULTS_PAGE` names one.
    pub(crate) fn close(&self, servers: &[Server]) {
        let rows = self.0.lock().unwrap();
        if rows.is_empty() {
            return;
        }
        let merged = merge(&rows);
        let (rounds, acknowledged, lost) = sums(&merged);
        println!("faults: {} kinds, {rounds} rounds, {acknowledged} acknowledged, {lost} lost", merged.len());
        if let Some(page) = std::env::var_os("WALHOLD_FAULTS_PAGE") {
            std::fs::write(Path::new(&page), self::page(&merged, servers)).expect("write the page of faults");
        }
    }
}

/// The rows of one fault on several versions are one.
fn merge(rows: &[(u32, Row)]) -> Vec<(Vec<u32>, Row)> {
    let mut merged: BTreeMap<&str, (Vec<u32>, Row)> = BTreeMap::new();
    for (major, row) in rows {
        match merged.get_mut(row.fault) {
            None => drop(merged.insert(row.fault, (vec![*major], row.clone()))),
            Some((majors, whole)) => {
                majors.push(*major);
                whole.rounds += row.rounds;
                whole.acknowledged += row.acknowledged;
                whole.lost += row.lost;
                whole.resumed = whole.resumed.max(row.resumed);
            }
        }
    }
    merged.into_values().collect()
}

fn sums(rows: &[(Vec<u32>, Row)]) -> (usize, usize, usize) {
    rows.iter().fold((0, 0, 0), |(rounds, acknowledged, lost), (_, row)| {
        (rounds + row.rounds, acknowledged + row.acknowledged, lost + row.lost)
    })
}

fn page(rows: &[(Vec<u32>, Row)], servers: &[Server]) -> String {
    let (rounds, acknowledged, lost) = sums(rows);
    let majors: Vec<String> = servers.iter().map(|server| server.major.to_string()).collect();
    let mut page = format!(
        "# What was broken, and what came of it\n\n\
         Made by `integration/faults`, which breaks real servers, disks and networks while writers commit; see its \
         head for what it needs. Servers of this run: PostgreSQL {}.\n\n\
         **{rounds} rounds, {acknowledged} acknowledged, {lost} lost.**\n\n\
         | fault | how it was made | versions | rounds | acknowledged | lost | went on after | what the operator was told |\n\
         |---|---|---|---|---|---|---|---|\n",
        majors.join(", ")
    );
    for (majors, row) in rows {
        let mut majors = majors.clone();
        majors.sort_unstable();
        majors.dedup();
        let majors: Vec<String> = majors.iter().map(u32::to_string).collect();
        let resumed = row.resumed.map_or_else(|| "-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
        let cell = |text: &str| text.replace('|', "\\|");
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {resumed} | {} |",
            cell(row.fault),
            cell(&row.how),
            majors.join(", "),
            row.rounds,
            row.acknowledged,
            row.lost,
            cell(&row.told)
        );
    }
    page
}

/// The line of what a program wrote to standard error that has `word`, without its time, and with the room's
/// folder shortened.
#[track_caller]
pub(crate) fn told(room: &Room, err: &str, word: &str) -> String {
    let line = err.lines().rfind(|line| line.contains(word)).unwrap_or_else(|| panic!("no {word:?} in:\n{err}"));
    let folder = format!("{}/", room.path("").display()).replace("//", "/");
    let line = line.replace(&folder, "");
    let line = line.split_once("walhold: ").map_or(line.as_str(), |(_, rest)| rest);
    format!("`{}`", line.trim())
}
