//! A TCP connection that is read ahead of whoever takes the bytes, once it is known that many will come.
//!
//! TLS asks for the rest of one record at a time: at most 16 KiB, and a quarter of that after a pause. Each time is a call of the system, which
//! tells the peer that there is room again, and may wake it up for that. Thousands of idle links have no use for it, and keep nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

#[derive(Debug)]
pub(crate) struct Intake {
    stream: TcpStream,
    /// Empty as long as nothing is read ahead.
    buffer: Box<[u8]>,
    /// What of it was not taken yet.
    begin: usize,
    end: usize,
}

impl Intake {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Box::default(), begin: 0, end: 0 }
    }

    /// From here on reads up to so many bytes at once. To be said once.
    pub(crate) fn read_ahead(&mut self, bytes: usize) {
        debug_assert_eq!(self.begin, self.end, "nothing was read ahead before");
        self.buffer = vec![0; bytes].into();
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.stream
    }
}

impl AsyncRead for Intake {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.begin == this.end {
            if into.remaining() >= this.buffer.len() {
                return Pin::new(&mut this.stream).poll_read(context, into);
            }
            let mut buffer = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer))?;
            (this.begin, this.end) = (0, buffer.filled().len());
        }
        let unread = &this.buffer[this.begin..this.end];
        let taken = unread.len().min(into.remaining());
        into.put_slice(&unread[..taken]);
        this.begin += taken;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Intake {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn every_byte_comes_once_and_in_order_whoever_asks_for_how_much() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut near = Intake::new(listener.accept().await.unwrap().0);
        let sent: Vec<u8> = (0..=250).cycle().take(40_000).collect();
        far.write_all(&sent[..10]).await.unwrap();
        let mut heard = vec![0; 10];
        near.read_exact(&mut heard).await.unwrap();

        near.read_ahead(1000);
        let rest = sent[10..].to_vec();
        tokio::spawn(async move { far.write_all(&rest).await });
        // Less than is read ahead, as much, and more.
        for size in [1, 7, 999, 1000, 1001, 5000].into_iter().cycle() {
            let mut bytes = vec![0; size];
            let count = near.read(&mut bytes).await.unwrap();
            heard.extend_from_slice(&bytes[..count]);
            if count == 0 {
                break;
            }
        }
        assert_eq!(heard, sent);
    }
}
