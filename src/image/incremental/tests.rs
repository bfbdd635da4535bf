use proptest::prelude::*;

use super::*;

const SIZE: usize = 1024;

/// A file as a server writes it; each block is filled with its number.
fn file(blocks: &[u32], truncation: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [MAGIC, blocks.len() as u32, truncation].iter().chain(blocks) {
        bytes.extend(word.to_le_bytes());
    }
    if !blocks.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(SIZE), 0);
    }
    for block in blocks {
        bytes.extend([*block as u8; SIZE]);
    }
    bytes
}

/// What is read when the bytes come in pieces: the increment, and each byte that was shown with its place.
fn read(bytes: &[u8], size: u64, piece: usize) -> Result<(Increment, Vec<(u64, u8)>), IncrementalError> {
    let mut reader = IncrementReader::new(size);
    let mut shown = Vec::new();
    for piece in bytes.chunks(piece) {
        reader.feed(piece, &mut |at, bytes| {
            shown.extend((at..).zip(bytes.iter().copied()));
            Ok::<_, IncrementalError>(())
        })?;
    }
    reader.finish().map(|increment| (increment, shown))
}

fn whole(bytes: &[u8]) -> Result<(Increment, Vec<(u64, u8)>), IncrementalError> {
    read(bytes, bytes.len() as u64, 100_000)
}

#[test]
fn blocks_are_shown_at_their_places_however_the_bytes_come() {
    let blocks = [0, 1, 2, 7, 9, 10];
    let bytes = file(&blocks, 9);
    let place = |block: u32| (0..SIZE as u64).map(move |n| (u64::from(block) * SIZE as u64 + n, block as u8));
    let expected: Vec<_> = blocks.into_iter().flat_map(place).collect();
    for piece in [1, 3, 7, 1000, 1024, 5000, 100_000] {
        let (increment, shown) = read(&bytes, bytes.len() as u64, piece).unwrap();
        assert_eq!((&increment.blocks[..], increment.truncation), (&blocks[..], 9));
        assert_eq!((increment.block_size, increment.length()), (Some(1024), 11));
        assert!(shown == expected, "{piece}");
    }
    let (none, shown) = whole(&file(&[], 30)).unwrap();
    assert_eq!((none.length(), none.block_size, shown.len()), (30, None, 0));
}

#[test]
fn the_size_of_blocks_is_told_by_the_size_of_the_file() {
    for size in BLOCK_SIZES {
        for count in [1_u64, 2, 253, 254, 2045, 131_072] {
            let len = header_len(count).next_multiple_of(size.into()) + count * u64::from(size);
            let reader = IncrementReader::new(len);
            assert_eq!(reader.block_size(count as u32), Ok(Some(size)), "{count} of {size}");
        }
    }
}

#[test]
fn p6_what_no_server_writes_is_refused() {
    let good = file(&[1, 5], 9);
    let changed = |at: usize, word: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        whole(&bytes).map(drop)
    };
    assert!(whole(&good).is_ok());
    assert_eq!(changed(0, MAGIC + 1), Err(IncrementalError::Magic));
    for count in [0, 1, 3, 1000] {
        assert_eq!(changed(4, count), Err(IncrementalError::Size { size: good.len() as u64, blocks: count }));
    }
    assert_eq!(changed(4, u32::MAX), Err(IncrementalError::TooLong(u32::MAX)));
    assert_eq!(changed(8, MAX_BLOCKS + 1), Err(IncrementalError::TooLong(MAX_BLOCKS + 1)));
    assert_eq!(changed(16, u32::MAX), Err(IncrementalError::TooLong(u32::MAX)));
    assert_eq!(changed(12, 5), Err(IncrementalError::Order { before: 5, after: 5 }));
    assert_eq!(changed(12, 6), Err(IncrementalError::Order { before: 6, after: 5 }));
    assert!(matches!(whole(&file(&[], 3)[..11]), Err(IncrementalError::CutShort)));
    for end in [0, 4, 12, 13, 20, 1023, 1024, good.len() - 1] {
        assert_eq!(read(&good[..end], good.len() as u64, 700).map(drop), Err(IncrementalError::CutShort), "{end}");
    }
    let longer = [&good[..], b"x"].concat();
    assert!(read(&longer, good.len() as u64, 700).is_err());
    // It announces blocks that a file of this size cannot hold: nothing is gathered for them.
    let mut reader = IncrementReader::new(u64::MAX - 7);
    let header = [MAGIC, MAX_BLOCKS, 0].map(u32::to_le_bytes).concat();
    assert!(reader.feed(&header, &mut |_, _| Ok::<_, IncrementalError>(())).is_err());
}

#[test]
fn names() {
    let stands = |name: &str| stands_for(&MemberPath::new(name.as_bytes()).unwrap());
    for (name, file) in [
        ("base/5/INCREMENTAL.16384", "base/5/16384"),
        ("base/5/INCREMENTAL.16384_vm.3", "base/5/16384_vm.3"),
        ("global/INCREMENTAL.1262", "global/1262"),
        ("pg_tblspc/16385/PG_17_202406281/5/INCREMENTAL.1", "pg_tblspc/16385/PG_17_202406281/5/1"),
    ] {
        assert_eq!(stands(name).unwrap().unwrap().as_str(), Some(file));
    }
    for name in ["INCREMENTAL.1", "base/INCREMENTAL.1", "pg_wal/INCREMENTAL.1", "globals/INCREMENTAL.1", "base/5/16384"]
    {
        assert_eq!(stands(name), None, "{name}");
    }
    assert!(stands("global/INCREMENTAL.").unwrap().is_err());
}

fn increment(blocks: &[u32], truncation: u32) -> Increment {
    Increment { blocks: blocks.to_vec(), truncation, block_size: Some(SIZE as u32) }
}

fn wanted(sought: &Sought) -> Vec<Range<u32>> {
    sought.wanted(0..100).collect()
}

#[test]
fn older_blocks_count_as_far_as_every_newer_file_reaches() {
    let mut sought = Sought::new(&increment(&[2, 3, 12], 10));
    assert_eq!((sought.length(), wanted(&sought)), (13, vec![0..2, 4..10]));
    assert_eq!(sought.wanted(1..5).collect::<Vec<_>>(), [1..2, 4..5]);
    // It was cut off at 5, and grown to 7 again.
    sought.pass(&increment(&[0, 6], 5));
    assert_eq!(wanted(&sought), [1..2, 4..5]);
    sought.pass(&increment(&[1, 2, 8], 100));
    assert_eq!(wanted(&sought), vec![4..5; 1]);
    assert_eq!(sought.length(), 13);
}

#[test]
fn a_file_that_did_not_change_is_untouched() {
    let mut sought = Sought::new(&increment(&[], 10));
    assert!(sought.is_untouched());
    sought.pass(&increment(&[], 12));
    assert!(sought.is_untouched());
    let mut cut = sought.clone();
    cut.pass(&increment(&[], 9));
    assert!(!cut.is_untouched());
    sought.pass(&increment(&[9], 10));
    assert!(!sought.is_untouched());
    assert!(!Sought::new(&increment(&[10], 10)).is_untouched());
}

/// What each file says of itself, applied to the one before: the oldest is whole.
fn one_after_the_other(oldest: &[u8], newer: &[Increment], content: &dyn Fn(usize, u32) -> u8) -> Vec<u8> {
    let mut file = oldest.to_vec();
    for (index, increment) in newer.iter().enumerate() {
        let mut next = vec![0; increment.length() as usize];
        for (block, to) in next.iter_mut().enumerate() {
            let before = file.get(block).copied().filter(|_| (block as u32) < increment.truncation);
            *to = before.unwrap_or(0);
        }
        for block in &increment.blocks {
            next[*block as usize] = content(index, *block);
        }
        file = next;
    }
    file
}

proptest! {
    /// From the newest to the oldest it is the same as from the oldest to the newest.
    #[test]
    fn the_way_back_gives_what_the_way_forth_does(
        oldest in proptest::collection::vec(1_u8..50, 0..90),
        newer in proptest::collection::vec((proptest::collection::btree_set(0_u32..100, 0..30), 0_u32..100), 1..5),
    ) {
        let newer: Vec<_> = newer
            .into_iter()
            .map(|(blocks, truncation)| increment(&blocks.into_iter().collect::<Vec<_>>(), truncation))
            .collect();
        let content = |index: usize, block: u32| (50 + index as u32 * 40 + block % 40) as u8;
        let expected = one_after_the_other(&oldest, &newer, &content);

        let (newest, older) = newer.split_last().unwrap();
        let mut sought = Sought::new(newest);
        let mut file = vec![0; sought.length() as usize];
        for block in &newest.blocks {
            file[*block as usize] = content(newer.len() - 1, *block);
        }
        for (index, increment) in older.iter().enumerate().rev() {
            for block in &increment.blocks {
                for block in sought.wanted(*block..*block + 1).flatten() {
                    file[block as usize] = content(index, block);
                }
            }
            sought.pass(increment);
        }
        for block in sought.wanted(0..oldest.len() as u32).flatten() {
            file[block as usize] = oldest[block as usize];
        }
        prop_assert_eq!(file, expected);
    }
}
