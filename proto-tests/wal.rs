//! Writes WAL as a server would, for tests: pages, records, switches, lost continuations. It shares
//! nothing with the verifier but the checksum, so that the two check each other.

#![allow(dead_code, reason = "each of the test programs that include this file uses a part of it")]

const PAGE: u64 = 8192;

/// A log from the start of a segment on.
#[derive(Clone)]
pub struct Log {
    /// Address of the first byte.
    pub start: u64,
    /// All that was written.
    pub bytes: Vec<u8>,
    /// Where each record begins that was not given up.
    pub starts: Vec<u64>,
    /// Goes into the header of each new page.
    pub tli: u32,
    /// What each page begins with; it differs from version to version.
    pub magic: u16,
    segment: u64,
    system_id: u64,
    prev: u64,
}

impl Log {
    /// An empty log at `start`, with segments of `segment` bytes.
    pub fn new(start: u64, segment: u64, tli: u32, system_id: u64) -> Self {
        assert_eq!(start % segment, 0);
        Self {
            start,
            bytes: Vec::new(),
            starts: Vec::new(),
            tli,
            magic: 0xD110,
            segment,
            system_id,
            prev: start.saturating_sub(100),
        }
    }

    /// The next byte.
    pub fn at(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Where a record written now begins.
    pub fn next_record(&mut self) -> u64 {
        if self.at().is_multiple_of(PAGE) {
            self.page(0, 0);
        }
        self.at()
    }

    /// Adds a record with `data` behind the header.
    pub fn record(&mut self, rmid: u8, info: u8, data: &[u8]) {
        let start = self.next_record();
        let mut header = Vec::with_capacity(24);
        header.extend((24 + data.len() as u32).to_le_bytes());
        header.extend(7_u32.to_le_bytes());
        header.extend(self.prev.to_le_bytes());
        header.extend([info, rmid, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(data), &header);
        header.extend(crc.to_le_bytes());
        header.extend(data);
        self.put(&header);
        while !self.at().is_multiple_of(8) {
            self.bytes.push(0);
        }
        self.starts.push(start);
        self.prev = start;
    }

    /// Adds a record of the XLOG resource manager that holds one address.
    fn xlog_lsn(&mut self, info: u8, lsn: u64) {
        let mut data = vec![255, 8];
        data.extend(lsn.to_le_bytes());
        self.record(0, info, &data);
    }

    /// The end of the backup that started at `start`.
    pub fn backup_end(&mut self, start: u64) {
        self.xlog_lsn(0x50, start);
    }

    /// A switch record and the zeros after it.
    pub fn switch(&mut self) {
        self.record(0, 0x40, &[]);
        let rest = self.segment - self.at() % self.segment;
        if rest != self.segment {
            self.bytes.resize(self.bytes.len() + rest as usize, 0);
        }
    }

    /// Cuts the log at the end of the page in which the record begun at `lost` begins, and goes on
    /// as a server does after a crash, with a record that gives `named` as the lost one.
    pub fn give_up(&mut self, lost: u64, named: u64) {
        let end = (lost / PAGE + 1) * PAGE;
        self.bytes.truncate((end - self.start) as usize);
        self.starts.retain(|s| *s < lost);
        self.prev = *self.starts.last().expect("a record before the lost one");
        self.page(8, 0);
        self.xlog_lsn(0xD0, named);
    }

    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.at().is_multiple_of(PAGE) {
                self.page(1, bytes.len() as u32);
            }
            let n = bytes.len().min((PAGE - self.at() % PAGE) as usize);
            self.bytes.extend(&bytes[..n]);
            bytes = &bytes[n..];
        }
    }

    fn page(&mut self, flags: u16, left: u32) {
        let at = self.at();
        let long = at.is_multiple_of(self.segment);
        self.bytes.extend(self.magic.to_le_bytes());
        self.bytes.extend((flags | if long { 2 } else { 0 }).to_le_bytes());
        self.bytes.extend(self.tli.to_le_bytes());
        self.bytes.extend(at.to_le_bytes());
        self.bytes.extend(left.to_le_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(self.system_id.to_le_bytes());
            self.bytes.extend((self.segment as u32).to_le_bytes());
            self.bytes.extend((PAGE as u32).to_le_bytes());
        }
    }
}
