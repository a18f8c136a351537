//! Committed bytes of one message of each kind: what was once on the wire goes on being understood, and encoded alike.
//!
//! A new kind is a new line at the end of `vectors.txt`. A line that is there never changes.

use cloudlink_proto::link::message::{DeviceMessage, ServerMessage};
use prost::Message;

use crate::example::{device_kinds, server_kinds};

/// Direction, name and bytes in hex, one message a line.
const VECTORS: &str = include_str!("vectors.txt");
const GUIDE: &str = include_str!("../../../docs/LINK-PROTOCOL.md");

#[test]
fn committed_bytes_are_what_each_kind_decodes_from_and_encodes_to() {
    let examples = examples();
    let vectors: Vec<_> = VECTORS.lines().filter(|line| !line.starts_with('#')).collect();
    let lines: Vec<_> = examples.iter().map(|(name, bytes)| format!("{name} {}", hex(bytes))).collect();
    assert_eq!(vectors, lines);
    for (line, (name, _)) in vectors.iter().zip(&examples) {
        let bytes = unhex(line.rsplit(' ').next().unwrap_or_default());
        match name.split(' ').next() {
            Some("device") => {
                let (_, kind) = device_kinds().into_iter().find(|(it, _)| name.ends_with(it)).unwrap();
                assert_eq!(DeviceMessage::decode(&bytes[..]).unwrap().kind, Some(kind), "{name}");
            }
            _ => {
                let (_, kind) =
                    server_kinds().into_iter().find(|(it, _)| name.strip_prefix("server ") == Some(it)).unwrap();
                assert_eq!(ServerMessage::decode(&bytes[..]).unwrap().kind, Some(kind), "{name}");
            }
        }
    }
}

#[test]
fn bytes_in_the_guide_are_the_committed_ones() {
    let mut shown = 0;
    for line in GUIDE.lines().filter(|line| line.starts_with("device ") || line.starts_with("server ")) {
        assert!(VECTORS.lines().any(|vector| vector == line), "not a committed vector: {line}");
        shown += 1;
    }
    assert!(shown >= 5, "the guide shows {shown} messages");
}

fn examples() -> Vec<(String, Vec<u8>)> {
    let device = device_kinds()
        .into_iter()
        .map(|(name, kind)| (format!("device {name}"), DeviceMessage { kind: Some(kind) }.encode_to_vec()));
    let server = server_kinds()
        .into_iter()
        .map(|(name, kind)| (format!("server {name}"), ServerMessage { kind: Some(kind) }.encode_to_vec()));
    device.chain(server).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
