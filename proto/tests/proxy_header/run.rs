//! What must hold of any bytes at all at the beginning of a connection.

use cloudlink_proto::proxy_header::{HEADER_BYTES_MAX, MARK_BYTES_MAX, decode, is_marked};

pub(crate) fn run(bytes: &[u8]) {
    let verdict = decode(bytes);
    assert!(verdict != Ok(None) || bytes.len() < HEADER_BYTES_MAX, "nobody waits for more than the longest");
    if let Ok(Some((header, length))) = verdict {
        assert!(length <= bytes.len().min(HEADER_BYTES_MAX));
        assert!(is_marked(bytes) && is_marked(&bytes[..MARK_BYTES_MAX]));
        assert_eq!(decode(&bytes[..length]), Ok(Some((header, length))), "what is behind it does not matter");
        for end in 0..length {
            assert_eq!(decode(&bytes[..end]), Ok(None), "it is complete at its end, and not before");
        }
    }
    let mut before = Ok(None);
    for end in 0..=bytes.len().min(HEADER_BYTES_MAX) {
        let now = decode(&bytes[..end]);
        assert!(before == Ok(None) || now == before, "a verdict never changes with more bytes");
        before = now;
    }
}
