//! What a backup holds whose data lies elsewhere: the server's own words.

use super::{ContentError, MAX_KEPT, check_control, check_map};
use crate::image::{BackupLabel, TablespaceMap};
use crate::repository::{Method, Repository, Seal};

/// The files that the data, wherever it lies, needs beside it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Said {
    /// `backup_label`; an atomic snapshot has none.
    pub label: Option<Vec<u8>>,
    /// `tablespace_map`, byte for byte.
    pub map: Option<Vec<u8>>,
    /// The `pg_control` of a standby, as it was when the copy had ended.
    pub control: Option<Vec<u8>>,
}

impl Repository {
    /// Reads what the server said of a backup whose data lies elsewhere; every file against the seal.
    ///
    /// # Errors
    /// With the first thing that is not as the seal says.
    pub fn said(&self, seal: &Seal) -> Result<Said, ContentError> {
        self.check_sizes(seal)?;
        let dir = self.backup_dir(seal.id);
        let mut said = Said::default();
        for file in &seal.files {
            let slot = match file.name.as_str() {
                Seal::LABEL => &mut said.label,
                Seal::TABLESPACE_MAP => &mut said.map,
                Seal::CONTROL => &mut said.control,
                _ => return Err(ContentError::Unexpected(file.name.clone())),
            };
            *slot = Some(self.read_kept(&dir, file, MAX_KEPT as u64)?);
        }
        if let Some(label) = &said.label {
            let label = BackupLabel::parse(label)?;
            if label.start != seal.start {
                return Err(ContentError::LabelStart(label.start));
            }
        } else if seal.method == Method::External {
            return Err(ContentError::NotListed(Seal::LABEL.to_owned()));
        }
        if let Some(map) = &said.map {
            check_map(&TablespaceMap::parse(map)?, seal)?;
        }
        match &said.control {
            Some(control) => {
                check_control(control, seal)?;
            }
            None if seal.min_recovery_point.is_some() => {
                return Err(ContentError::NotListed(Seal::CONTROL.to_owned()));
            }
            None => {}
        }
        Ok(said)
    }
}
