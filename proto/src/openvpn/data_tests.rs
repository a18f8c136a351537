use data_encoding::HEXLOWER;
use proptest::prelude::*;
use rstest::rstest;

use super::*;

const V2: Format = Format::V2 { peer_id: 7 };
const EPOCH: Format = Format::Epoch { peer_id: 7 };

/// Key material of appendix A: byte i is i.
fn material() -> KeyMaterial {
    KeyMaterial::new(std::array::from_fn(|index| u8::try_from(index).unwrap()))
}

fn server(cipher: Cipher, format: Format) -> DataKeys {
    DataKeys::new(cipher, format, KeyId::FIRST, &material(), true)
}

fn client(cipher: Cipher, format: Format) -> DataKeys {
    DataKeys::new(cipher, format, KeyId::FIRST, &material(), false)
}

/// A frame without its length, which is checked.
fn sealed(keys: &mut DataKeys, plain: &[u8]) -> Vec<u8> {
    let mut buffer = [&[0; HEADROOM], plain, &[0; TAILROOM]].concat();
    let frame = keys.seal(&mut buffer, plain.len()).unwrap();
    let (length, packet) = buffer[frame].split_first_chunk().unwrap();
    assert_eq!(usize::from(u16::from_be_bytes(*length)), packet.len());
    packet.to_vec()
}

fn opened(keys: &mut DataKeys, packet: &[u8]) -> Result<Vec<u8>, OpenError> {
    let mut packet = packet.to_vec();
    let (opcode, _) = Opcode::split(packet[0]);
    keys.open(opcode.unwrap(), &mut packet).map(|plain| packet[plain].to_vec())
}

#[rstest]
#[case(Cipher::Aes256Gcm, V2, "4800000700000001d76a6d450dbe0a5e3d6c48ba7230ba43935c53e2eadd3824275aa3759531edf7")]
#[case(Cipher::Aes256Gcm, Format::V1, "3000000001d8408d26b81476c4fcab915804e0fe5e935c53e2eadd3824275aa3759531edf7")]
#[case(
    Cipher::ChaCha20Poly1305,
    V2,
    "48000007000000016c2fc09e74da321df57074a2fb75fe51d66f4ab9a3175311c0ac2d0db6d2e53e"
)]
#[case(
    Cipher::ChaCha20Poly1305,
    Format::V1,
    "30000000013c15b89aa2f9a3a9f5ccd9df423d6168d66f4ab9a3175311c0ac2d0db6d2e53e"
)]
#[case(
    Cipher::Aes256Gcm,
    EPOCH,
    "48000007000100000000000112832a88e17a857348f8f0b779379b38ca20fbc45ad4a51e6c02fe361b204488"
)]
fn packets_equal_appendix_a(#[case] cipher: Cipher, #[case] format: Format, #[case] expected: &str) {
    let packet = sealed(&mut server(cipher, format), &PING);
    assert_eq!(HEXLOWER.encode(&packet), expected);
    assert_eq!(opened(&mut client(cipher, format), &packet).unwrap(), PING);
}

#[rstest]
fn any_changed_byte_and_any_cut_is_noticed(
    #[values(Cipher::Aes256Gcm, Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305)] cipher: Cipher,
    #[values(V2, Format::V1, EPOCH)] format: Format,
) {
    let packet = sealed(&mut client(cipher, format), b"some plaintext");
    for index in 1..packet.len() {
        let mut changed = packet.clone();
        changed[index] ^= 0x80;
        assert!(opened(&mut server(cipher, format), &changed).is_err(), "byte {index}");
        assert!(opened(&mut server(cipher, format), &packet[..index]).is_err(), "{index} bytes");
    }
    assert_eq!(opened(&mut server(cipher, format), &packet).unwrap(), b"some plaintext");
}

#[rstest]
fn packets_count_once_whatever_their_order(#[values(V2, Format::V1, EPOCH)] format: Format) {
    let (mut from, mut to) = (client(Cipher::Aes256Gcm, format), server(Cipher::Aes256Gcm, format));
    let packets: Vec<Vec<u8>> = (0..70_u8).map(|number| sealed(&mut from, &[number])).collect();
    for number in [5, 3, 69, 68, 6] {
        assert_eq!(opened(&mut to, &packets[number]).unwrap(), [u8::try_from(number).unwrap()]);
        assert_eq!(opened(&mut to, &packets[number]), Err(OpenError::Replay(ReplayError::Repeated)));
    }
    assert_eq!(opened(&mut to, &packets[4]), Err(OpenError::Replay(ReplayError::TooOld)));
}

#[test]
fn both_old_formats_are_taken_whatever_was_agreed() {
    let mut to = server(Cipher::Aes256Gcm, V2);
    assert!(opened(&mut to, &sealed(&mut client(Cipher::Aes256Gcm, Format::V1), b"1")).is_ok());
    let mut other = client(Cipher::Aes256Gcm, Format::V2 { peer_id: 0x00ff_ffff });
    sealed(&mut other, b"1");
    assert!(opened(&mut to, &sealed(&mut other, b"2")).is_ok());
}

#[test]
fn packet_id_zero_is_refused() {
    let packet = [&[0x48, 0, 0, 7, 0, 0, 0, 0], [0; 40].as_slice()].concat();
    assert_eq!(opened(&mut server(Cipher::Aes256Gcm, V2), &packet), Err(OpenError::Replay(ReplayError::Zero)));
}

#[test]
fn packet_ids_never_wrap() {
    let mut keys = client(Cipher::Aes256Gcm, V2);
    keys.age(0xfeff_fffe);
    sealed(&mut keys, b"");
    assert!(!keys.wants_renegotiation());
    sealed(&mut keys, b"");
    assert!(keys.wants_renegotiation());
    keys.age(u32::MAX - 1);
    sealed(&mut keys, b"");
    let mut buffer = [0; HEADROOM + TAILROOM];
    assert_eq!(keys.seal(&mut buffer, 0), Err(SealError::Exhausted));
    assert_eq!(keys.seal(&mut buffer, 0), Err(SealError::Exhausted));
}

#[test]
fn the_other_side_asks_for_a_new_key_too() {
    let (mut from, mut to) = (client(Cipher::ChaCha20Poly1305, V2), server(Cipher::ChaCha20Poly1305, V2));
    from.age(0xff00_0000);
    opened(&mut to, &sealed(&mut from, b"")).unwrap();
    assert!(to.wants_renegotiation());
}

#[test]
fn aes_gcm_keys_have_a_limit_on_blocks() {
    let mut keys = client(Cipher::Aes128Gcm, V2);
    let Sealing::Packet(sealing) = &mut keys.sealing else { unreachable!() };
    sealing.usage = ((1 << 36) - 1) / 8 * 7 - 2;
    assert!(!keys.wants_renegotiation());
    sealed(&mut keys, &[0; 16]);
    assert!(keys.wants_renegotiation());
    let Sealing::Packet(sealing) = &mut keys.sealing else { unreachable!() };
    sealing.usage = (1 << 36) - 3;
    sealed(&mut keys, &[0; 16]);
    let mut buffer = [0; HEADROOM + TAILROOM];
    assert_eq!(keys.seal(&mut buffer, 0), Err(SealError::Exhausted));
}

/// Moves a sender on by `epochs`.
fn advance(keys: &mut DataKeys, epochs: u16) {
    let Sealing::Epoch(sealing) = &mut keys.sealing else { unreachable!() };
    let target = sealing.key.epoch + epochs;
    sealing.lift_to(target);
}

fn send_epoch(keys: &DataKeys) -> u16 {
    let Sealing::Epoch(sealing) = &keys.sealing else { unreachable!() };
    sealing.key.epoch
}

#[rstest]
#[case(1, true)]
#[case(4, true)]
#[case(5, false)]
fn epochs_up_to_four_ahead_are_followed(#[case] ahead: u16, #[case] accepted: bool) {
    let (mut from, mut to) = (client(Cipher::Aes256Gcm, EPOCH), server(Cipher::Aes256Gcm, EPOCH));
    let early = sealed(&mut from, b"early");
    advance(&mut from, ahead);
    let late = sealed(&mut from, b"late");
    if accepted {
        assert_eq!(opened(&mut to, &late).unwrap(), b"late");
        assert_eq!(send_epoch(&to), 1 + ahead);
        assert_eq!(opened(&mut to, &early).unwrap(), b"early", "the epoch before stays open");
        assert_eq!(opened(&mut from, &sealed(&mut to, b"back")).unwrap(), b"back");
    } else {
        assert_eq!(opened(&mut to, &late), Err(OpenError::Epoch(1 + ahead)));
        assert_eq!(send_epoch(&to), 1);
    }
}

#[test]
fn an_unauthentic_packet_moves_no_epoch() {
    let (mut from, mut to) = (client(Cipher::Aes256Gcm, EPOCH), server(Cipher::Aes256Gcm, EPOCH));
    advance(&mut from, 2);
    let mut packet = sealed(&mut from, b"late");
    *packet.last_mut().unwrap() ^= 1;
    assert_eq!(opened(&mut to, &packet), Err(OpenError::Tag));
    assert_eq!(send_epoch(&to), 1);
}

#[test]
fn epochs_that_went_by_twice_are_refused() {
    let (mut from, mut to) = (client(Cipher::Aes256Gcm, EPOCH), server(Cipher::Aes256Gcm, EPOCH));
    let oldest = sealed(&mut from, b"");
    for _ in 0..2 {
        advance(&mut from, 1);
        opened(&mut to, &sealed(&mut from, b"")).unwrap();
    }
    assert_eq!(opened(&mut to, &oldest), Err(OpenError::Epoch(1)));
    let zero = [&[0x48, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1], [0; 30].as_slice()].concat();
    assert_eq!(opened(&mut to, &zero), Err(OpenError::Epoch(0)));
}

#[test]
fn a_sender_at_its_limit_goes_on_to_the_next_epoch() {
    let (mut from, mut to) = (client(Cipher::Aes256Gcm, EPOCH), server(Cipher::Aes256Gcm, EPOCH));
    opened(&mut to, &sealed(&mut from, b"")).unwrap();
    let Sealing::Epoch(sealing) = &mut from.sealing else { unreachable!() };
    sealing.usage = (1 << 36) - 1;
    assert_eq!(opened(&mut to, &sealed(&mut from, b"next")).unwrap(), b"next");
    assert_eq!((send_epoch(&from), send_epoch(&to)), (2, 2));
}

#[test]
fn buffers_without_room_are_refused() {
    let mut keys = client(Cipher::Aes256Gcm, V2);
    for bytes in [0, HEADROOM, HEADROOM + 10, HEADROOM + 10 + TAILROOM - 1] {
        assert_eq!(keys.seal(&mut vec![0; bytes], 10), Err(SealError::NoRoom));
    }
    assert_eq!(keys.seal(&mut vec![0; 70_000], 66_000), Err(SealError::TooLarge));
}

proptest! {
    #[test]
    fn arbitrary_packets_never_panic_and_never_pass(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
        for format in [V2, EPOCH] {
            for opcode in [Opcode::DataV1, Opcode::DataV2] {
                prop_assert!(server(Cipher::Aes256Gcm, format).open(opcode, &mut bytes.clone()).is_err());
            }
        }
    }
}
