//! Scripts of the protocol: each file of `testdata/raft` is commands and, behind `----`, what the replicas then do.
//!
//! A script reads like the protocol and is reviewed like one. `TRIUNE_REWRITE=1` writes what happens now into the
//! files; a change there is a change of the protocol and needs a reason. The commands are listed in `scripts/mod.rs`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "tests")]
#![cfg(all(feature = "raft", feature = "check"))]

mod common;
mod scripts;

use std::path::PathBuf;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/raft")
}

fn files() -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    files
}

#[test]
fn every_script_happens_as_written() {
    let rewrite = std::env::var("TRIUNE_REWRITE").is_ok_and(|value| value == "1");
    let mut failures = String::new();
    for path in files() {
        let expected = std::fs::read_to_string(&path).unwrap();
        let actual = scripts::run(&expected);
        if rewrite {
            std::fs::write(&path, actual).unwrap();
        } else if actual != expected {
            failures += &format!("\n=== {}\n{}", path.display(), scripts::diff(&expected, &actual));
        }
    }
    assert!(failures.is_empty(), "{failures}\nif this is meant: TRIUNE_REWRITE=1, then read the diff");
}

#[test]
fn there_is_a_script_for_each_part_of_the_protocol() {
    assert!(files().len() >= 10, "scripts are missing from {}", directory().display());
}

#[test]
fn a_difference_is_shown_with_its_line() {
    let shown = scripts::diff("a\nb\nc\n", "a\nx\nc\n");
    assert_eq!(shown, "   1   a\n   2 - b\n   2 + x\n   3   c\n");
}
