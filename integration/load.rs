//! Writers that note what the server acknowledged, and the comparison with what came back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::room::{SOON, wait_until};
use crate::sql::Session;

/// Accounts that every commit changes one of, so that pages change under a copy.
const ACCOUNTS: i64 = 20_000;

/// Writers at work. Each commit inserts a number of its own and raises one account by 1.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<i64>>>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Makes the tables on a server that lets commits return.
    #[track_caller]
    pub(crate) fn prepare(cluster: &Cluster<'_>) {
        cluster.rows(&format!(
            "create table ledger (n bigint not null);
             create table account as
                 select id, 0 as balance, repeat('x', 100) as note from generate_series(1, {ACCOUNTS}) id;
             alter table account add primary key (id)"
        ));
    }

    /// Starts writers. They go on through crashes and restarts of the server.
    pub(crate) fn start(cluster: &Cluster<'_>, writers: usize) -> Self {
        Self::start_at(cluster, writers, 0)
    }

    /// The same, with numbers of their own for writers on a server that was restored.
    pub(crate) fn start_at(cluster: &Cluster<'_>, writers: usize, first: usize) -> Self {
        let load = Self { stop: Arc::default(), acknowledged: Arc::default(), writers: Vec::new() };
        let spawn = |writer| {
            let (stop, acknowledged, door) = (load.stop.clone(), load.acknowledged.clone(), cluster.door());
            std::thread::spawn(move || {
                let mut numbers = ((first + writer) as i64 + 1) * 1_000_000_000..;
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(session) = door.open() {
                        write(session.stop_at(stop.clone()), &mut numbers, &acknowledged, &stop);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        };
        let threads = (0..writers).map(spawn).collect();
        Self { writers: threads, ..load }
    }

    /// How many commits have been acknowledged.
    pub(crate) fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// The numbers that have been acknowledged.
    pub(crate) fn so_far(&self) -> Vec<i64> {
        self.acknowledged.lock().unwrap().clone()
    }

    /// Waits for so many more acknowledged commits.
    #[track_caller]
    pub(crate) fn wait_for_more(&self, more: usize) {
        let target = self.count() + more;
        wait_until(&format!("{more} more commits"), SOON, || self.count() >= target);
    }

    /// Ends the writers; the numbers that were acknowledged.
    pub(crate) fn finish(self) -> Vec<i64> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.join().unwrap();
        }
        std::mem::take(&mut self.acknowledged.lock().unwrap())
    }
}

fn write(
    mut session: Session,
    numbers: &mut std::ops::RangeFrom<i64>,
    acknowledged: &Mutex<Vec<i64>>,
    stop: &AtomicBool,
) {
    for number in numbers {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // Spread over all accounts, and never the same two at the same time in two writers for long.
        let account = (number.wrapping_mul(2_654_435_761) % ACCOUNTS).abs() + 1;
        let sql = format!(
            "with u as (update account set balance = balance + 1 where id = {account}) insert into ledger values ({number})"
        );
        if session.run(&sql).is_err() {
            return;
        }
        acknowledged.lock().unwrap().push(number);
    }
}

/// How many of the acknowledged commits are not there. Whatever is there must be there once, and with all
/// that it changed.
#[track_caller]
pub(crate) fn lost(acknowledged: &[i64], server: &Cluster<'_>) -> usize {
    missing(acknowledged, server).len()
}

/// What was acknowledged must be there, once, and with all that it changed.
#[track_caller]
pub(crate) fn compare(acknowledged: &[i64], server: &Cluster<'_>) {
    let missing = missing(acknowledged, server);
    let first = &missing[..missing.len().min(10)];
    assert!(missing.is_empty(), "{} of {} acknowledged commits are lost: {first:?}", missing.len(), acknowledged.len());
}

#[track_caller]
fn missing(acknowledged: &[i64], server: &Cluster<'_>) -> Vec<i64> {
    // A writer's numbers follow each other, so that few stretches stand for very many rows.
    let stretches: Vec<(i64, i64)> = server
        .rows(
            "select min(n), max(n), count(*) from
                 (select n, n - dense_rank() over (order by n) as stretch from ledger) numbered
             group by stretch order by 1",
        )
        .iter()
        .map(|row| {
            let number = |column: usize| row[column].as_deref().unwrap().parse::<i64>().unwrap();
            let (first, last, count) = (number(0), number(1), number(2));
            assert_eq!(count, last - first + 1, "commits from {first} to {last} are there twice");
            (first, last)
        })
        .collect();
    let balance = server.sql("select sum(balance) - (select count(*) from ledger) from account");
    assert_eq!(balance, "0", "each commit raised one account by 1");
    let is_there = |n: i64| {
        let behind = stretches.partition_point(|(first, _)| *first <= n);
        stretches[..behind].last().is_some_and(|(_, last)| n <= *last)
    };
    acknowledged.iter().copied().filter(|n| !is_there(*n)).collect()
}
