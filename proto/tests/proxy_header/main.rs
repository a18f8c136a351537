//! The corpus of the fuzz target `proxy_header`, and random bytes besides.

mod run;

use std::path::Path;

use proptest::prelude::*;

/// What fuzzers have found worth keeping. A crash gets its file here, too.
#[test]
fn the_corpus_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/proxy_header");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() >= 10, "the corpus is gone");
    for file in files {
        run::run(&std::fs::read(file).unwrap());
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_hold(
        mark in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", b"\r\n\r\n\0\r\nQUIT\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0"]),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        run::run(&[mark, &bytes].concat());
    }
}
