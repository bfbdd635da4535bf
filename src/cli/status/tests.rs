use super::bar::{ASCII, UNICODE};
use super::page::{Form, page};
use super::*;
use crate::repository::made::Parts;
use crate::repository::tests::with_wal;
use crate::status::tests::{after, asking, long, server};

const PLAIN: Form = Form { width: 72, pens: ASCII, bold: false };

fn shown(status: &Status, form: Form) -> String {
    let mut status = status.clone();
    status.repository = "/srv/repo".to_owned();
    page(&status, after(3600).0, form)
}

#[test]
fn golden() {
    let dir = tempfile::tempdir().unwrap();
    let (repository, ..) = long(&dir.path().join("r"));
    std::fs::remove_file(dir.path().join("r/wal/000000010000000000000007")).unwrap();
    let _lock = repository.lock("walhold receive, process 1 on db1").unwrap();
    let held = status(&repository, None).unwrap().held.unwrap();
    let found = asking(&repository, &Ok(server(held)));
    println!("{}", shown(&found, PLAIN));
    println!("{}", shown(&found, Form { pens: UNICODE, ..PLAIN }));
    let empty = status(&with_wal(&dir.path().join("w"), &Parts::new().log), None).unwrap();
    println!("{}", shown(&empty, PLAIN));
}
