use std::pin::pin;
use std::time::Duration;

use cloudlink_proto::proxy_header::LOCAL;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;

/// Far above what anything takes here.
const PATIENCE: Duration = Duration::from_secs(20);
/// For what has arrived to be read.
const MOMENT: Duration = Duration::from_millis(5);
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\xc0\x00\x02\x07\xc6\x33\x64\x01\x9c\x40\x01\xbb\x04\0\x01x";
/// The beginning of a TLS record.
const BEHIND: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00";

/// Both ends of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (sender, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let sender = sender.unwrap();
    sender.set_nodelay(true).unwrap();
    (sender, accepted.unwrap().0)
}

/// What is left on a connection, whose other end is closed.
async fn rest(mut stream: TcpStream, sender: TcpStream) -> Vec<u8> {
    drop(sender);
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    rest
}

#[tokio::test]
async fn a_header_and_what_follows_may_come_in_any_two_parts() {
    for header in [V1, V2, &LOCAL] {
        let whole = [header, BEHIND].concat();
        for end in 0..=whole.len() {
            let (mut sender, mut stream) = pair().await;
            let (first, second) = whole.split_at(end);
            sender.write_all(first).await.unwrap();
            let taken = {
                let mut taking = pin!(take_header(&mut stream));
                match timeout(MOMENT, &mut taking).await {
                    Ok(taken) => {
                        assert!(end >= header.len(), "{end} bytes were enough");
                        sender.write_all(second).await.unwrap();
                        taken
                    }
                    Err(_) => {
                        sender.write_all(second).await.unwrap();
                        timeout(PATIENCE, taking).await.unwrap()
                    }
                }
            };
            assert_eq!(taken.unwrap(), decode(header).unwrap().unwrap().0);
            assert_eq!(rest(stream, sender).await, BEHIND, "nothing behind it is taken");
        }
    }
}

#[tokio::test]
async fn a_header_may_come_byte_by_byte() {
    for header in [V1, V2] {
        let (mut sender, mut stream) = pair().await;
        {
            let mut taking = pin!(take_header(&mut stream));
            for byte in &header[..header.len() - 1] {
                sender.write_all(&[*byte]).await.unwrap();
                assert!(timeout(MOMENT, &mut taking).await.is_err());
            }
            sender.write_all(&[&header[header.len() - 1..], BEHIND].concat()).await.unwrap();
            let taken = timeout(PATIENCE, taking).await.unwrap().unwrap();
            assert_eq!(taken, Header::Client("192.0.2.7:40000".parse().unwrap()));
        }
        assert_eq!(rest(stream, sender).await, BEHIND);
    }
}

#[tokio::test]
async fn the_end_of_a_connection_is_the_end_of_its_header() {
    for end in 0..V2.len() {
        let (mut sender, mut stream) = pair().await;
        sender.write_all(&V2[..end]).await.unwrap();
        drop(sender);
        let taken = timeout(PATIENCE, take_header(&mut stream)).await.unwrap();
        assert!(matches!(taken, Err(ProxyError::Closed(_))), "{end} bytes: {taken:?}");
    }
}

#[tokio::test]
async fn the_longest_header_is_taken_and_a_longer_one_is_not() {
    let length = u16::try_from(HEADER_BYTES_MAX - 16).unwrap();
    let of_length = |length: u16| [&V2[..14], &length.to_be_bytes(), &V2[16..28], &[0; HEADER_BYTES_MAX]].concat();
    let (mut sender, mut stream) = pair().await;
    sender.write_all(&of_length(length)).await.unwrap();
    let taken = timeout(PATIENCE, take_header(&mut stream)).await.unwrap().unwrap();
    assert_eq!(taken, Header::Client("192.0.2.7:40000".parse().unwrap()));
    assert_eq!(rest(stream, sender).await.len(), 28);

    let (mut sender, mut stream) = pair().await;
    sender.write_all(&of_length(length + 1)).await.unwrap();
    let taken = timeout(PATIENCE, take_header(&mut stream)).await.unwrap();
    assert!(matches!(taken, Err(ProxyError::Header(DecodeError::TooLong))), "{taken:?}");
}

#[tokio::test]
async fn nothing_is_taken_from_who_speaks_tls() {
    let (mut sender, stream) = pair().await;
    sender.write_all(BEHIND).await.unwrap();
    assert!(!timeout(PATIENCE, sends_header(&stream)).await.unwrap());
    assert_eq!(rest(stream, sender).await, BEHIND);
}

#[tokio::test]
async fn who_sends_a_header_is_told_from_who_sends_something_else() {
    for (bytes, expected) in [
        (V1, true),
        (V2, true),
        (&LOCAL[..], true),
        (b"PROXY nonsense\r\n", true),
        (b"POST / HTTP/1.1\r\n", false),
        (b"\r\n\r\n", false),
        (b"", false),
    ] {
        let (mut sender, stream) = pair().await;
        sender.write_all(bytes).await.unwrap();
        drop(sender);
        assert_eq!(timeout(PATIENCE, sends_header(&stream)).await.unwrap(), expected, "{bytes:?}");
    }
}

#[test]
fn an_ipv4_address_counts_however_it_is_written() {
    let proxies = Proxies::new("test", &["192.0.2.0/24".parse().unwrap(), "2001:db8::5/128".parse().unwrap()]);
    for (peer, expected) in [
        ("192.0.2.7", true),
        ("::ffff:192.0.2.7", true),
        ("192.0.3.7", false),
        ("::ffff:192.0.3.7", false),
        ("2001:db8::5", true),
        ("2001:db8::6", false),
    ] {
        assert_eq!(proxies.include(peer.parse().unwrap()), expected, "{peer}");
    }
    assert!(!Proxies::default().include(IpAddr::from([127, 0, 0, 1])));
}
