//! The connection service file: `[name]` lines, each followed by `keyword=value` lines
//! (`parseServiceInfo` in `fe-connect.c`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::setting::{Origin, Settings};
use super::{ConninfoError, Surroundings};

/// Where the system-wide file is when `PGSYSCONFDIR` does not say: Debian, Red Hat, and a
/// PostgreSQL that somebody built.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/etc/postgresql-common", "/etc/sysconfig/pgsql", "/usr/local/pgsql/etc"];

/// Sets what the service of this name says, over what has been set before. The user's own file
/// comes before the system's.
///
/// # Errors
/// When no file has the service, or the one that has it cannot be read or is wrong.
pub(super) fn apply(
    settings: &mut Settings,
    service: &str,
    file: Option<&str>,
    surroundings: &Surroundings,
) -> Result<(), ConninfoError> {
    let own = match file {
        Some(named) => Some((PathBuf::from(named), true)),
        None => surroundings.home.as_ref().map(|home| (home.join(".pg_service.conf"), false)),
    };
    let system = match (surroundings.variable)("PGSYSCONFDIR") {
        Some(directory) => vec![PathBuf::from(directory)],
        None => SYSTEM_DIRECTORIES.map(PathBuf::from).to_vec(),
    };
    let system = system.into_iter().map(|directory| (directory.join("pg_service.conf"), false));
    for (path, required) in own.into_iter().chain(system) {
        let Some(content) = content(&path, required)? else { continue };
        let Some(pairs) = find(&content, service, &path)? else { continue };
        for (line, keyword, value) in pairs {
            let origin = Origin::Service { path: path.display().to_string(), line };
            settings.set(&keyword, value, origin).map_err(|_| wrong(&path, line, "an unknown keyword"))?;
        }
        return Ok(());
    }
    Err(ConninfoError::NoService(service.to_owned()))
}

fn content(path: &Path, required: bool) -> Result<Option<String>, ConninfoError> {
    match fs::read_to_string(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if !required && matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(ConninfoError::ServiceFile { path: path.display().to_string(), reason: e.to_string() }),
    }
}

fn wrong(path: &Path, line: usize, what: &str) -> ConninfoError {
    ConninfoError::ServiceFile { path: path.display().to_string(), reason: format!("line {line} has {what}") }
}

/// A line with a setting: its number, from 1, keyword and value.
type Line = (usize, String, String);

/// The settings of the first group of this name. Of a keyword that is there twice the first counts.
/// The lines of other groups are not looked at.
fn find(content: &str, service: &str, path: &Path) -> Result<Option<Vec<Line>>, ConninfoError> {
    let mut found: Option<Vec<Line>> = None;
    for (line, text) in (1..).zip(content.lines()) {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if let Some(name) = text.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            found = (name.split(']').next() == Some(service) && name.contains(']')).then(Vec::new);
            continue;
        }
        let Some(pairs) = &mut found else { continue };
        let Some((keyword, value)) = text.split_once('=') else {
            let what =
                if text.starts_with("ldap") { "an LDAP lookup, which walhold does not have" } else { "no \"=\"" };
            return Err(wrong(path, line, what));
        };
        if ["service", "servicefile"].contains(&keyword) {
            return Err(wrong(path, line, "a service within a service"));
        }
        if pairs.iter().all(|(_, known, _)| known != keyword) {
            pairs.push((line, keyword.to_owned(), value.to_owned()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# all of them\n host=nobody\n[other]\nport = no matter\n\n[prod]\n  host=a,b\n# no\nport=1\nhost=c\npassword= x y =z \n[prod]\nuser=late\n";

    #[test]
    fn the_first_group_of_the_name_counts() {
        let found = find(FILE, "prod", Path::new("f")).unwrap().unwrap();
        let pair = |line, key: &str, value: &str| (line, key.to_owned(), value.to_owned());
        assert_eq!(found, [pair(7, "host", "a,b"), pair(9, "port", "1"), pair(11, "password", " x y =z")]);
        assert_eq!(find(FILE, "pro", Path::new("f")).unwrap(), None);
        assert_eq!(find("[prod", "prod", Path::new("f")).unwrap(), None);
    }

    #[test]
    fn wrong_lines_are_named_without_what_they_say() {
        for (text, reason) in [
            ("[s]\nsecret", "line 2 has no \"=\""),
            ("[s]\n\nservice=t", "line 3 has a service within a service"),
            ("[s]\nldap://x/y?z", "line 2 has an LDAP lookup, which walhold does not have"),
        ] {
            let expected = ConninfoError::ServiceFile { path: "f".into(), reason: reason.into() };
            assert_eq!(find(text, "s", Path::new("f")).unwrap_err(), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_it_panic(text in r"(\[s\]|\[|\]|\n|=|#|[a-z \PC]){0,40}") {
            for (line, keyword, _) in find(&text, "s", Path::new("f")).unwrap_or_default().unwrap_or_default() {
                proptest::prop_assert!(line <= text.lines().count() && !keyword.contains('='));
            }
        }
    }
}
