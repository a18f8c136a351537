//! Mail: plain text, one message a receiver, over SMTP (RFC 5321).

use std::path::Path;
use std::time::Duration;

use http::Uri;
use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Tokio1Executor};

use super::letter::{Letter, SUBJECT_CHARS_MAX, line};
use crate::config::{MailTls, Notice};

/// Why no mail can be sent.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    #[error("cannot read notice.mail_ca_file")]
    File(#[source] std::io::Error),
    #[error("notice.mail_ca_file has no certificates, PEM")]
    Certificates,
    #[error("TLS with the mail server cannot be set up")]
    Tls(#[source] lettre::transport::smtp::Error),
    #[error("notice.mail_port is no port")]
    Port,
}

/// What came of sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The mail server has it.
    Taken,
    /// It may work later.
    Refused(String),
    /// There is no such mailbox, or it is no address at all.
    NoMailbox(String),
}

/// Hands mail to the mail server.
#[derive(Debug)]
pub(super) struct Mailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    within: Duration,
}

impl Mailer {
    /// `None` when there is no mail server.
    pub(super) fn new(config: &Notice) -> Result<Option<Self>, MailError> {
        let Some(host) = &config.mail_host else { return Ok(None) };
        let (host, within) = (host.to_string(), config.attempt_timeout_seconds.duration());
        let from = config.mail_from.mailbox().clone();
        let tls = match config.mail_tls {
            MailTls::Starttls => Tls::Required(tls(&host, config.mail_ca_file.as_deref())?),
            MailTls::Tls => Tls::Wrapper(tls(&host, config.mail_ca_file.as_deref())?),
            MailTls::None => Tls::None,
        };
        let port = u16::try_from(config.mail_port).map_err(|_| MailError::Port)?;
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
            .port(port)
            .tls(tls)
            .timeout(Some(within))
            .hello_name(ClientId::Domain(from.email.domain().to_owned()));
        if let (Some(user), Some(password)) = (&config.mail_user, &config.mail_password) {
            transport = transport.credentials(Credentials::new(user.clone(), password.expose().to_owned()));
        }
        Ok(Some(Self { transport: transport.build(), from, within }))
    }

    /// Sends one message to one receiver.
    pub(super) async fn send(&self, letter: &Letter) -> Sent {
        let message = match compose(&self.from, letter) {
            Ok(message) => message,
            Err(words) => return Sent::NoMailbox(words.to_owned()),
        };
        match tokio::time::timeout(self.within, self.transport.send(message)).await {
            Ok(Ok(_)) => Sent::Taken,
            Ok(Err(error)) => judge(&error),
            Err(_) => Sent::Refused("timed out".to_owned()),
        }
    }
}

/// Whether it is a mail address that can be written to.
#[must_use]
pub fn is_address(text: &str) -> bool {
    // The domain is one that a resolver can be asked for; the rest is up to the mail server.
    let is_ours = |address: &Address| {
        address.as_ref() as &str == text && format!("http://{}/", address.domain()).parse::<Uri>().is_ok()
    };
    text.chars().count() <= ADDRESS_CHARS_MAX && text.is_ascii() && text.parse::<Address>().is_ok_and(|a| is_ours(&a))
}

/// Of a receiver's name.
const NAME_CHARS_MAX: usize = 128;
/// RFC 5321, less the brackets.
const ADDRESS_CHARS_MAX: usize = 254;

fn compose(from: &Mailbox, letter: &Letter) -> Result<Message, &'static str> {
    let address: Address = letter.address.parse().map_err(|_| "it is no mail address")?;
    // A control character in a name would not only be wrong: lettre panics on it.
    let name = line(&letter.name, NAME_CHARS_MAX);
    Message::builder()
        .from(from.clone())
        .to(Mailbox::new(Some(name), address))
        .subject(line(&letter.subject, SUBJECT_CHARS_MAX))
        .date(letter.at.into())
        // The same over all attempts: two copies are seen to be one.
        .message_id(Some(format!("<{}@{}>", letter.id, from.email.domain())))
        .header(AutoSubmitted)
        .header(ContentType::TEXT_PLAIN)
        .body(letter.text.clone())
        .map_err(|_| "it cannot be put into a message")
}

/// So that nobody's absence is answered (RFC 3834).
#[derive(Clone, Copy, Debug)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

fn judge(error: &lettre::transport::smtp::Error) -> Sent {
    let Some(code) = error.status() else {
        let words = match (error.is_timeout(), error.is_tls()) {
            (true, _) => "timed out",
            (false, true) => "no trusted TLS connection",
            (false, false) => "cannot reach the mail server, or it broke off",
        };
        return Sent::Refused(words.to_owned());
    };
    // Mailboxes (RFC 5321, 4.2.3). Whatever else is refused for good may be a fault in the configuration of either side.
    let number = u16::from(code);
    if matches!(number, 550 | 551 | 553) {
        Sent::NoMailbox(number.to_string())
    } else {
        Sent::Refused(number.to_string())
    }
}

fn tls(host: &str, ca_file: Option<&Path>) -> Result<TlsParameters, MailError> {
    let mut tls = TlsParameters::builder(host.to_owned());
    if let Some(path) = ca_file {
        let pem = std::fs::read(path).map_err(MailError::File)?;
        let roots = Certificate::from_pem(&pem).map_err(|_| MailError::Certificates)?;
        tls = tls.certificate_store(CertificateStore::None).add_root_certificate(roots);
    }
    tls.build().map_err(MailError::Tls)
}

#[cfg(test)]
mod tests {
    use cloudlink_proto::ids::NoticeId;
    use rstest::rstest;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    fn letter(name: &str, subject: &str, text: &str) -> Letter {
        Letter {
            id: NoticeId::from_uuid(Uuid::from_u128(7)),
            at: OffsetDateTime::UNIX_EPOCH,
            name: name.to_owned(),
            address: "tina@example.com".to_owned(),
            subject: subject.to_owned(),
            text: text.to_owned(),
        }
    }

    fn formatted(letter: &Letter) -> String {
        let from = "Cloudlink <cloudlink@example.com>".parse().unwrap();
        String::from_utf8(compose(&from, letter).unwrap().formatted()).unwrap()
    }

    /// The lines of the head, continued ones joined.
    fn headers(message: &str) -> Vec<String> {
        let (head, _) = message.split_once("\r\n\r\n").unwrap();
        head.replace("\r\n ", " ").replace("\r\n\t", " ").split("\r\n").map(str::to_owned).collect()
    }

    #[test]
    fn doubles_have_one_id_and_nobody_answers_by_machine() {
        let message = formatted(&letter("Tina", "Access", "Hello\n"));
        let id = "Message-ID: <00000000-0000-0000-0000-000000000007@example.com>";
        assert!(headers(&message).iter().any(|line| line == id), "{message}");
        assert!(message.contains("Auto-Submitted: auto-generated\r\n"), "{message}");
        assert!(message.contains("To: Tina <tina@example.com>\r\n"), "{message}");
        assert_eq!(message, formatted(&letter("Tina", "Access", "Hello\n")));
    }

    #[rstest]
    #[case("a\r\nBcc: all@example.com")]
    #[case("a\nBcc: all@example.com")]
    #[case("a\rBcc: all@example.com")]
    #[case("a\u{85}Bcc: all@example.com")]
    #[case("a\u{2028}Bcc: all@example.com")]
    #[case("a\u{0}\u{1b}[31mBcc: all@example.com")]
    #[case("\" <all@example.com>, \"")]
    #[case("all@example.com, b")]
    #[case("=?utf-8?q?=0D=0ABcc:=20all@example.com?=")]
    #[case("é\r\nBcc: all@example.com")]
    #[case("Ω, <all@example.com>")]
    fn names_and_subjects_make_no_headers_and_no_receivers(#[case] nasty: &str) {
        let letter = letter(nasty, nasty, "text\r\n.\r\nRCPT TO:<all@example.com>\r\n");
        let message = formatted(&letter);
        let expected = [
            "From",
            "To",
            "Subject",
            "Date",
            "Message-ID",
            "Auto-Submitted",
            "Content-Type",
            "Content-Transfer-Encoding",
        ];
        let names: Vec<_> = headers(&message).iter().map(|line| line.split(':').next().unwrap().to_owned()).collect();
        assert_eq!(names.len(), expected.len(), "{message}");
        for name in expected {
            assert!(names.iter().any(|given| given == name), "{name} in {message}");
        }
        let from: Mailbox = "Cloudlink <cloudlink@example.com>".parse().unwrap();
        let envelope = compose(&from, &letter).unwrap().envelope().clone();
        assert_eq!(envelope.to(), ["tina@example.com".parse::<Address>().unwrap()]);
        let to = headers(&message).into_iter().find(|line| line.starts_with("To: ")).unwrap();
        // Whatever the name is, it is quoted or encoded.
        assert!(to.ends_with("<tina@example.com>"), "{to}");
        let bare = to.trim_start_matches("To: ").trim_end_matches("<tina@example.com>").trim();
        assert!(bare.starts_with("=?utf-8?") || bare.starts_with('"') || !bare.contains(['@', ',', '<', ':']), "{to}");
    }

    #[rstest]
    #[case("tina@example.com", true)]
    #[case("tina.o'neil+cloudlink@mail.example.com", true)]
    #[case("root@localhost", true)]
    #[case("", false)]
    #[case("tina", false)]
    #[case("@example.com", false)]
    #[case("tina@", false)]
    #[case("tina@example.com, tom@example.com", false)]
    #[case("Tina <tina@example.com>", false)]
    #[case("tina@example.com\r\nBcc: tom@example.com", false)]
    #[case("tina\n@example.com", false)]
    #[case("tina@exam ple.com", false)]
    #[case("tina@example.com>", false)]
    #[case("tina@exämple.com", false)]
    fn an_address_is_one_address_and_nothing_else(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(is_address(text), expected);
        assert!(!is_address(&format!("{}@example.com", "x".repeat(ADDRESS_CHARS_MAX))));
    }
}
