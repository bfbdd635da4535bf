use super::super::coverage::tests::{at as tenths, backup, history, id as numbered};
use super::super::tests::{at as pos, seal_of};
use super::*;

fn id(n: u32) -> BackupId {
    format!("20261122T0000{n:02}Z").parse().unwrap()
}

fn entry(n: u32, parent: Option<u32>) -> BackupEntry {
    let at = u64::from(n) << 24;
    let mut seal = seal_of(id(n), pos(at + 40), pos(at + 400), Vec::new());
    seal.parent = parent.map(id);
    seal.kind = if parent.is_some() { Kind::Incremental } else { Kind::Full };
    BackupEntry { id: id(n), state: BackupState::Sealed(Box::new(seal)), running: false, kept: false, untested: false }
}

fn ids(entries: &[BackupEntry], n: usize) -> Result<Vec<BackupId>, BrokenChain> {
    chain(entries, entries[n].seal().unwrap()).map(|chain| chain.iter().map(|seal| seal.id).collect())
}

#[test]
fn a_chain_leads_to_the_full_one() {
    let entries = [entry(1, None), entry(2, Some(1)), entry(3, Some(2)), entry(4, Some(2))];
    assert_eq!(ids(&entries, 0), Ok(vec![id(1)]));
    assert_eq!(ids(&entries, 2), Ok(vec![id(3), id(2), id(1)]));
    assert_eq!(ids(&entries, 3), Ok(vec![id(4), id(2), id(1)]));
}

#[test]
fn a_link_that_does_not_hold_is_named() {
    let mut entries = [entry(1, None), entry(2, Some(1)), entry(3, Some(2))];
    entries[0].state = BackupState::Unfinished;
    assert_eq!(ids(&entries, 2), Err(BrokenChain::NotSealed { child: id(2), parent: id(1) }));
    entries[0].state = BackupState::Damaged("torn".into());
    assert!(matches!(ids(&entries, 2), Err(BrokenChain::Damaged { .. })));
    assert_eq!(ids(&entries[1..], 1), Err(BrokenChain::Missing { child: id(2), parent: id(1) }));
    // Two that name each other, and one that names itself.
    let around = [entry(1, Some(2)), entry(2, Some(1)), entry(3, Some(3))];
    assert_eq!(ids(&around, 1), Err(BrokenChain::NotBefore { child: id(1), parent: id(2) }));
    assert_eq!(ids(&around, 2), Err(BrokenChain::NotBefore { child: id(3), parent: id(3) }));
    let BackupState::Sealed(seal) = &mut entries[2].state else { unreachable!() };
    seal.parent = None;
    assert_eq!(ids(&entries, 2), Err(BrokenChain::Unnamed(id(3))));
}

#[test]
fn the_newest_on_the_way_that_can_be_restored_is_built_on() {
    let mut backups = vec![
        backup(1, tenths(1, 100), tenths(1, 120)),
        backup(2, tenths(1, 200), tenths(1, 220)),
        backup(3, tenths(1, 300), tenths(1, 320)),
        backup(4, tenths(2, 300), tenths(2, 330)),
    ];
    let newest = |backups: &[BackupEntry], way: &History| newest_base(backups, way).map(|seal| seal.id);
    let (first, second) = (History::first(), history(2, &[(1, 250)]));
    assert_eq!(newest(&backups, &first), Some(numbered(3)));
    assert_eq!(newest(&backups, &second), Some(numbered(4)));
    backups.pop();
    // Number 3 ends behind the fork.
    assert_eq!(newest(&backups, &second), Some(numbered(2)));
    let BackupState::Sealed(seal) = &mut backups[2].state else { unreachable!() };
    (seal.kind, seal.parent) = (Kind::Incremental, Some(numbered(7)));
    assert_eq!(newest(&backups, &first), Some(numbered(2)));
    backups[1].state = BackupState::Damaged("x".to_owned());
    assert_eq!(newest(&backups, &first), Some(numbered(1)));
    assert_eq!(newest(&[], &first), None);
}
