//! Signed statements in files: written whole, and checked without any server.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use cloudlink_certs::statement::STATEMENT_BYTES_MAX;
use cloudlink_certs::{Statement, StatementKind, TrustAnchor};

use crate::commands::Context;
use crate::connection;
use crate::failure::Failure;

/// A statement that is to be believed, and because of whom.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) statement: Statement,
    /// The file of the authority.
    pub(crate) authority: PathBuf,
}

/// Checks the statement in a file, `-` for standard input. Says which check failed.
pub(crate) fn verify(context: &Context, kind: StatementKind, file: &Path) -> Result<Verified, Failure> {
    let Some(authority) = context.ca() else {
        return Err(Failure::Usage(
            "whose statement is it?\nGive the certificate of the fleet's authority: --ca FILE".to_owned(),
        ));
    };
    let trust = TrustAnchor::from_pem(connection::ca_from_file(&authority)?.as_bytes())
        .with_context(|| format!("{} cannot be used", authority.display()))?;
    let statement = verify_text(&trust, kind, &read(file)?).context("the statement is not valid")?;
    Ok(Verified { statement, authority })
}

pub(crate) fn verify_text(trust: &TrustAnchor, kind: StatementKind, text: &str) -> anyhow::Result<Statement> {
    // Files end with a line's end, statements do not.
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(trust.verify_statement(kind, text)?)
}

/// A file that appears when it is complete.
pub(crate) fn write(path: &Path, statement: &str) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.part", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = File::create_new(&temporary).and_then(|mut file| {
        writeln!(file, "{statement}")?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

pub(crate) fn read(file: &Path) -> Result<String, Failure> {
    let unreadable = || format!("{} cannot be read", file.display());
    let mut text = String::new();
    let bytes_max = STATEMENT_BYTES_MAX as u64 + 2;
    let read = if file.as_os_str() == "-" {
        io::stdin().take(bytes_max).read_to_string(&mut text)
    } else {
        File::open(file).with_context(unreadable)?.take(bytes_max).read_to_string(&mut text)
    };
    match read {
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(anyhow::anyhow!("it is not text").context("the statement is not valid").into())
        }
        Err(error) => Err(anyhow::Error::new(error).context(unreadable()).into()),
    }
}
