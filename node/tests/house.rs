//! The house rules a compiler does not check: which crate may use which, and what a pure core must not name.
//!
//! The arrows are read from the manifests, dev-dependencies included. The purity test reads every source file that is
//! core: all of a crate but the paths in its `[package.metadata.triune] shell`, and of `node` the paths in `core`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 8] = ["transport", "storage", "sim", "consensus", "txn", "cache", "mq", "node"];

/// What each crate may depend on, and what only its tests may.
fn allowed(name: &str) -> (&'static [&'static str], &'static [&'static str]) {
    match name {
        "transport" | "storage" => (&[], &["sim"]),
        "sim" => (&["transport", "storage"], &["transport", "storage"]),
        "consensus" | "txn" | "cache" | "mq" => (&["transport", "storage"], &["transport", "storage", "sim"]),
        "node" => (&["transport", "storage", "consensus", "txn", "cache", "mq"], &CRATES),
        other => panic!("{other} is not one of the eight crates"),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn manifest(name: &str) -> toml::Table {
    fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap().parse().unwrap()
}

fn ours(table: Option<&toml::Value>) -> Vec<String> {
    let names =
        table.and_then(toml::Value::as_table).map(|t| t.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    names.iter().filter_map(|n| n.strip_prefix("triune-")).map(str::to_owned).collect()
}

#[test]
fn the_workspace_has_these_crates_and_no_other() {
    let workspace: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let members: Vec<_> =
        workspace["workspace"]["members"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    assert_eq!(members, CRATES);
}

#[test]
fn arrows_point_only_where_the_design_allows() {
    let mut seen = 0;
    for name in CRATES {
        let manifest = manifest(name);
        let (deps, dev) = allowed(name);
        for found in ours(manifest.get("dependencies")).iter().chain(&ours(manifest.get("build-dependencies"))) {
            assert!(deps.contains(&found.as_str()), "{name} must not depend on {found}");
            seen += 1;
        }
        for found in ours(manifest.get("dev-dependencies")) {
            // A crate may name itself, to turn its features on for its own tests.
            assert!(found == name || dev.contains(&found.as_str()), "the tests of {name} must not depend on {found}");
        }
    }
    assert!(seen >= 10, "only {seen} arrows found: the manifests are no longer understood");
}

/// What a core must not name, and why.
const IMPURE: [(&str, &str); 16] = [
    ("tokio", "a runtime"),
    ("async fn", "a runtime"),
    ("std::net", "a socket"),
    ("std::fs", "a file"),
    ("std::io::", "a file"),
    ("std::thread", "a thread"),
    ("std::process", "a process"),
    ("std::env", "the environment"),
    ("Instant::now", "an ambient clock"),
    ("SystemTime", "an ambient clock"),
    ("thread_rng", "ambient randomness"),
    ("getrandom", "ambient randomness"),
    ("RandomState", "ambient randomness"),
    ("HashMap::new", "an order that changes"),
    ("HashSet::new", "an order that changes"),
    ("mpsc", "a channel end"),
];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn paths(meta: &toml::Table, key: &str) -> Vec<String> {
    let list =
        meta.get("package").and_then(|p| p.get("metadata")).and_then(|m| m.get("triune")).and_then(|t| t.get(key));
    list.and_then(toml::Value::as_array)
        .map(|a| a.iter().map(|v| v.as_str().unwrap().to_owned()).collect())
        .unwrap_or_default()
}

/// The text of a file without comments and without its test module, which may use what it likes.
fn code(text: &str) -> BTreeMap<usize, &str> {
    let end = text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end]
        .lines()
        .enumerate()
        .map(|(n, line)| (n + 1, line.split("//").next().unwrap_or_default()))
        .filter(|(_, line)| !line.trim().is_empty())
        .collect()
}

#[test]
fn cores_name_no_runtime_socket_file_thread_clock_or_randomness() {
    let mut files = 0;
    let mut faults = Vec::new();
    for name in CRATES {
        let meta = manifest(name);
        let shell = paths(&meta, "shell");
        let core = paths(&meta, "core");
        for path in &shell {
            assert!(root().join(name).join(path).exists(), "{name}: the shell path {path} does not exist");
        }
        let mut found = Vec::new();
        sources(&root().join(name).join("src"), &mut found);
        for path in found {
            let inside = path.strip_prefix(root().join(name)).unwrap().to_str().unwrap().to_owned();
            let is_core = if name == "node" {
                core.iter().any(|c| inside.starts_with(c))
            } else {
                !shell.iter().any(|s| inside.starts_with(s))
            };
            if !is_core {
                continue;
            }
            files += 1;
            let text = fs::read_to_string(&path).unwrap();
            for (line, code) in code(&text) {
                for (word, what) in IMPURE {
                    if code.contains(word) {
                        faults.push(format!("{name}/{inside}:{line}: a core names {what}: {word}"));
                    }
                }
            }
        }
    }
    assert!(files >= 20, "only {files} core files found: the paths are no longer understood");
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_source_file_opens_by_saying_what_it_is() {
    for name in CRATES {
        let mut found = Vec::new();
        for dir in ["src", "tests", "benches", "examples"] {
            sources(&root().join(name).join(dir), &mut found);
        }
        for path in found {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//!"), "{} does not open by saying what it is", path.display());
        }
    }
}
