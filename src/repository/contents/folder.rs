//! The files that a command has copied, shown as if they came from archives.

use super::super::copied::{Found, is_real_dir, list_tree, roots};
use super::{CHUNK, ContentError, Contents, Members, Pass, ReadError};
use crate::disk::{Access, AlignedBuf, Disk, EntryKind, Trouble};
use crate::image::{Member, MemberKind, TarEvent};

impl Contents<'_> {
    pub(super) fn read_copy<E>(
        &self,
        pass: &mut Pass,
        seen: &mut impl FnMut(Option<u32>, &TarEvent<'_>) -> Result<(), E>,
    ) -> Result<(), ReadError<E>> {
        let disk = &*self.repository.disk;
        for (tablespace, root) in roots(&self.dir, self.seal.tablespaces.iter().map(|space| space.oid)) {
            let name = root.strip_prefix(&self.dir).unwrap_or(&root).display().to_string();
            if !is_real_dir(disk, &root).map_err(ContentError::from)? {
                return Err(ContentError::Missing(name).into());
            }
            let mut members = Members::new(&name, tablespace, pass.scratch.clone());
            for found in list_tree(disk, &root).map_err(ContentError::from)? {
                read_one(disk, &root, &found, &mut |event| {
                    members.take(&event, pass)?;
                    seen(tablespace, &event).map_err(ReadError::Seen)
                })?;
            }
            members.finish()?;
        }
        Ok(())
    }
}

/// A file or directory as the member of an archive.
fn read_one<E>(
    disk: &dyn Disk,
    root: &std::path::Path,
    found: &Found,
    event: &mut impl FnMut(TarEvent<'_>) -> Result<(), ReadError<E>>,
) -> Result<(), ReadError<E>> {
    if found.kind == EntryKind::Other {
        return Err(ContentError::Odd(found.path.to_string()).into());
    }
    let path = root.join(found.path.as_path());
    let missing = || ContentError::Missing(found.path.to_string());
    let meta = disk.metadata(&path).map_err(ContentError::from)?.ok_or_else(missing)?;
    let member = |kind| {
        let mtime = meta.modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mtime = i64::try_from(mtime).unwrap_or(i64::MAX);
        TarEvent::Member(Member { path: found.path.clone(), kind, mode: meta.mode, mtime })
    };
    if found.kind == EntryKind::Directory {
        event(member(MemberKind::Directory))?;
        return event(TarEvent::MemberEnd);
    }
    let file = match disk.open(&path, Access::ReadDirect) {
        Err(e) if e.trouble() == Trouble::Missing => return Err(missing().into()),
        file => file.map_err(ContentError::from)?,
    };
    let size = file.size().map_err(ContentError::from)?;
    event(member(MemberKind::File { size }))?;
    let mut buffer = AlignedBuf::zeroed(CHUNK);
    let mut at = 0;
    loop {
        let n = file.read_at(at, &mut buffer).map_err(ContentError::from)?;
        let data = buffer.get(..n).unwrap_or_default();
        at += n as u64;
        if at > size {
            break;
        }
        if !data.is_empty() {
            event(TarEvent::Data(data))?;
        }
        // A read that did not fill the buffer met the end; direct I/O takes no offset there.
        if n < CHUNK {
            break;
        }
    }
    if at != size {
        return Err(ContentError::Size { name: found.path.to_string(), found: at, sealed: size }.into());
    }
    event(TarEvent::MemberEnd)
}
