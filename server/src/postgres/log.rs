//! What Postgres says on standard error, put into our log.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

/// Longer lines are cut into several.
const LINE_BYTES_MAX: u64 = 4_096;
/// Lines that are kept to explain a failed start.
const KEPT_LINES_MAX: usize = 8;

/// The last lines that were said.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Said {
    pub(super) fn text(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    }

    fn keep(&self, line: &str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT_LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }
}

/// Forwards lines until the stream ends: when the last process of Postgres has closed it.
pub(super) async fn forward(stream: impl AsyncRead + Unpin, said: Said) {
    let mut stream = BufReader::new(stream);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match (&mut stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let line = String::from_utf8_lossy(&bytes);
                let line = line.trim();
                if !line.is_empty() {
                    said.keep(line);
                    forward_line(line);
                }
            }
        }
    }
}

/// The severities of Postgres are named at the start of its lines. `ERROR` is the end of one statement, which whoever sent it is
/// told as well.
fn forward_line(line: &str) {
    let (severity, message) = line.split_once(":  ").unwrap_or(("LOG", line));
    match severity {
        "PANIC" => tracing::error!(target: "postgres", severity, "{message}"),
        "FATAL" | "WARNING" => tracing::warn!(target: "postgres", severity, "{message}"),
        "LOG" => tracing::info!(target: "postgres", "{message}"),
        _ => tracing::debug!(target: "postgres", severity, "{message}"),
    }
}
