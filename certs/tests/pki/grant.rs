//! Grants that a tenant signs: what is genuine and allows something, and everything that is not and does not.

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use cloudlink_certs::grant::{GRANT_STATEMENT_BYTES_MAX, JwsError, TermsError};
use cloudlink_certs::{GrantStatement, GrantStatementError, GrantUse, KeyAlgorithm, KeyId, PrivateKey, PublicKey};
use data_encoding::BASE64URL_NOPAD;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::fleet::key_of;

const TENANT: Uuid = Uuid::from_u128(0x7e);
const GRANT: Uuid = Uuid::from_u128(0x67);
const DEVICE: Uuid = Uuid::from_u128(0xde);
const OTHER: Uuid = Uuid::from_u128(0x99);
const NOW: OffsetDateTime = datetime!(2026-12-01 12:00 UTC);
const TYP: &str = "vnd.cloudlink.grant+jwt";

fn statement() -> GrantStatement {
    GrantStatement {
        tenant: TENANT,
        grant: GRANT,
        signed_at: NOW - Duration::HOUR,
        starts_at: NOW - Duration::HOUR,
        ends_at: NOW + Duration::HOUR,
        scopes: vec!["device:reboot".to_owned(), "shell:open".to_owned()],
        devices: vec![Uuid::from_u128(1), DEVICE],
        operators: None,
        reason: "WLAN is down".to_owned(),
        request: None,
    }
}

fn wanted() -> GrantUse<'static> {
    GrantUse {
        tenant: TENANT,
        device: DEVICE,
        grant: GRANT,
        scope: "device:reboot",
        now: NOW,
        leeway: Duration::MINUTE,
    }
}

fn part(bytes: impl AsRef<[u8]>) -> String {
    BASE64URL_NOPAD.encode(bytes.as_ref())
}

fn signature(message: &str, key: &PrivateKey) -> Vec<u8> {
    let pkcs8 = key.as_pkcs8_der();
    let pkcs8 = pkcs8.secret_pkcs8_der();
    match key.algorithm() {
        KeyAlgorithm::Ed25519 => Ed25519KeyPair::from_pkcs8(pkcs8).unwrap().sign(message.as_bytes()).as_ref().to_vec(),
        KeyAlgorithm::P256 | KeyAlgorithm::P384 => EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
            .unwrap()
            .sign(&SystemRandom::new(), message.as_bytes())
            .unwrap()
            .as_ref()
            .to_vec(),
    }
}

/// Signs whatever it is, as it is.
fn signed(header: &str, content: &str, key: &PrivateKey) -> String {
    let message = format!("{}.{}", part(header), part(content));
    let signature = part(signature(&message, key));
    format!("{message}.{signature}")
}

fn header(key: &PrivateKey) -> Value {
    let alg = if key.algorithm() == KeyAlgorithm::Ed25519 { "EdDSA" } else { "ES256" };
    json!({"alg": alg, "typ": TYP, "kid": KeyId::of(&key.public_key()).to_string()})
}

fn content() -> Value {
    json!({"iss": TENANT.to_string(), "jti": GRANT.to_string(), "iat": (NOW - Duration::HOUR).unix_timestamp(),
           "nbf": (NOW - Duration::HOUR).unix_timestamp(), "exp": (NOW + Duration::HOUR).unix_timestamp(),
           "scopes": ["device:reboot", "shell:open"], "devices": [Uuid::from_u128(1).to_string(), DEVICE.to_string()],
           "operators": null, "reason": "WLAN is down", "request": null})
}

fn verify(text: &str, key: &PrivateKey) -> Result<GrantStatement, GrantStatementError> {
    GrantStatement::verify(text, &[key.public_key()], &wanted())
}

#[rstest]
#[case(KeyAlgorithm::Ed25519)]
#[case(KeyAlgorithm::P256)]
fn what_was_signed_is_read_and_allows_what_it_names(#[case] algorithm: KeyAlgorithm) {
    let (key, other) = (key_of(algorithm), key_of(KeyAlgorithm::Ed25519));
    let text = statement().sign(&key).unwrap();
    let keys = [other.public_key(), key.public_key()];
    assert_eq!(GrantStatement::verify(&text, &keys, &wanted()), Ok(statement()));
    assert_eq!(GrantStatement::open(&text, &keys).unwrap().1, KeyId::of(&key.public_key()));
    // The same, as the documentation says that it looks, made by somebody else.
    assert_eq!(verify(&signed(&header(&key).to_string(), &content().to_string(), &key), &key), Ok(statement()));
}

/// The key and the statement of docs/SIGNED-GRANTS.md, for whoever writes another implementation.
#[test]
fn the_example_of_the_documentation_is_genuine() {
    let page = include_str!("../../../docs/SIGNED-GRANTS.md");
    let block = |begin: &str| page.split_once(begin).unwrap().1.split_once("```").unwrap().0.trim();
    let key = PublicKey::from_pem(block("```pem\n").as_bytes()).unwrap();
    let text: String = block("```jws\n").split_whitespace().collect();
    let (statement, key_id) = GrantStatement::open(&text, std::slice::from_ref(&key)).unwrap();
    assert_eq!(key_id, KeyId::of(&key));
    assert!(page.contains(&key_id.to_string()) && page.contains(&statement.grant.to_string()), "{statement:?}");
}

#[test]
fn only_what_is_wanted_is_allowed() {
    let key = key_of(KeyAlgorithm::Ed25519);
    let text = statement().sign(&key).unwrap();
    let at = |now| GrantUse { now, ..wanted() };
    let (starts, ends) = (NOW - Duration::HOUR, NOW + Duration::HOUR);
    let cases = [
        (GrantUse { tenant: OTHER, ..wanted() }, GrantStatementError::OtherTenant),
        (GrantUse { grant: OTHER, ..wanted() }, GrantStatementError::OtherGrant { named: GRANT }),
        (GrantUse { device: OTHER, ..wanted() }, GrantStatementError::OtherDevice),
        (
            GrantUse { scope: "device:shutdown", ..wanted() },
            GrantStatementError::OtherScope { scope: "device:shutdown".to_owned() },
        ),
        (GrantUse { scope: "", ..wanted() }, GrantStatementError::OtherScope { scope: String::new() }),
        (at(ends), GrantStatementError::Ended { ends_at: ends, now: ends }),
        (
            at(starts - Duration::MINUTE - Duration::NANOSECOND),
            GrantStatementError::SignedLater {
                signed_at: starts,
                now: starts - Duration::MINUTE - Duration::NANOSECOND,
            },
        ),
        (
            at(datetime!(1970-01-01 00:00 UTC)),
            GrantStatementError::SignedLater { signed_at: starts, now: datetime!(1970-01-01 00:00 UTC) },
        ),
    ];
    for (wanted, expected) in cases {
        assert_eq!(GrantStatement::verify(&text, &[key.public_key()], &wanted), Err(expected), "{wanted:?}");
    }
    for now in [ends - Duration::NANOSECOND, starts - Duration::MINUTE] {
        assert!(GrantStatement::verify(&text, &[key.public_key()], &at(now)).is_ok());
    }
    let later = GrantStatement { starts_at: NOW + Duration::minutes(2), ..statement() }.sign(&key).unwrap();
    let expected = GrantStatementError::NotYet { starts_at: NOW + Duration::minutes(2), now: NOW };
    assert_eq!(verify(&later, &key), Err(expected));
}

#[rstest]
#[case::no_key_is_trusted(JwsError::UnknownKey, |_: &mut Value, _: &mut Value| {}, KeyAlgorithm::P256)]
#[case::another_kid(JwsError::UnknownKey, |header: &mut Value, _: &mut Value| header["kid"] = json!("00"), KeyAlgorithm::Ed25519)]
#[case::another_typ(JwsError::Kind, |header: &mut Value, _: &mut Value| header["typ"] = json!("JWT"), KeyAlgorithm::Ed25519)]
#[case::the_typ_of_another_statement(
    JwsError::Kind, |header: &mut Value, _: &mut Value| header["typ"] = json!("vnd.cloudlink.isolation-statement+jwt"), KeyAlgorithm::Ed25519
)]
#[case::no_algorithm(JwsError::Algorithm, |header: &mut Value, _: &mut Value| header["alg"] = json!("none"), KeyAlgorithm::Ed25519)]
#[case::another_algorithm(
    JwsError::Algorithm, |header: &mut Value, _: &mut Value| header["alg"] = json!("ES256"), KeyAlgorithm::Ed25519
)]
#[case::critical(JwsError::Header, |header: &mut Value, _: &mut Value| header["crit"] = json!(["b64"]), KeyAlgorithm::Ed25519)]
#[case::its_own_key(JwsError::Header, |header: &mut Value, _: &mut Value| header["jwk"] = json!({}), KeyAlgorithm::Ed25519)]
#[case::a_nonce(JwsError::Header, |header: &mut Value, _: &mut Value| header["nonce"] = json!(1), KeyAlgorithm::Ed25519)]
#[case::another_claim(JwsError::Content, |_: &mut Value, content: &mut Value| content["aud"] = json!("x"), KeyAlgorithm::Ed25519)]
fn what_another_key_or_header_signed_is_refused(
    #[case] expected: JwsError,
    #[case] change: fn(&mut Value, &mut Value),
    #[case] signer: KeyAlgorithm,
) {
    let trusted = key_of(KeyAlgorithm::Ed25519);
    let signer = if signer == KeyAlgorithm::Ed25519 { None } else { Some(key_of(signer)) };
    let signer = signer.as_ref().unwrap_or(&trusted);
    let (mut header, mut content) = (header(signer), content());
    change(&mut header, &mut content);
    let text = signed(&header.to_string(), &content.to_string(), signer);
    assert_eq!(verify(&text, &trusted), Err(GrantStatementError::Jws(expected)));
}

#[test]
fn headers_without_each_of_their_members_are_refused() {
    let key = key_of(KeyAlgorithm::Ed25519);
    for member in ["alg", "typ", "kid"] {
        let mut header = header(&key);
        header.as_object_mut().unwrap().remove(member);
        let text = signed(&header.to_string(), &content().to_string(), &key);
        assert_eq!(verify(&text, &key), Err(GrantStatementError::Jws(JwsError::Header)), "{member}");
    }
}

#[test]
fn a_key_signs_with_its_own_algorithm_only() {
    let (ed25519, p256) = (key_of(KeyAlgorithm::Ed25519), key_of(KeyAlgorithm::P256));
    // Signed by one key, and said to be by the other: with its algorithm, and with that of the signer.
    for (named, signer) in [(&p256, &ed25519), (&ed25519, &p256)] {
        let text = signed(&header(named).to_string(), &content().to_string(), signer);
        assert_eq!(verify(&text, named), Err(GrantStatementError::Jws(JwsError::Signature)));
        let mut header = header(named);
        header["alg"] = self::header(signer)["alg"].clone();
        let text = signed(&header.to_string(), &content().to_string(), signer);
        assert_eq!(verify(&text, named), Err(GrantStatementError::Jws(JwsError::Algorithm)));
    }
    // The public key as the secret of a MAC.
    for secret in [ed25519.public_key_der(), ed25519.public_key().to_pem().into_bytes()] {
        let mut header = header(&ed25519);
        header["alg"] = json!("HS256");
        let message = format!("{}.{}", part(header.to_string()), part(content().to_string()));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), message.as_bytes());
        let text = format!("{message}.{}", part(tag));
        assert_eq!(verify(&text, &ed25519), Err(GrantStatementError::Jws(JwsError::Algorithm)));
    }
    // P-384 signs no grants, and what is said to be by such a key is not believed.
    let p384 = key_of(KeyAlgorithm::P384);
    assert!(statement().sign(&p384).is_err());
    let text = signed(&header(&p384).to_string(), &content().to_string(), &p256);
    assert_eq!(verify(&text, &p384), Err(GrantStatementError::Jws(JwsError::Algorithm)));
}

#[test]
fn each_claim_must_be_there_and_be_what_it_is() {
    let key = key_of(KeyAlgorithm::Ed25519);
    let header = header(&key).to_string();
    let form = GrantStatementError::Jws(JwsError::Content);
    for claim in content().as_object().unwrap().keys() {
        let mut content = content();
        content.as_object_mut().unwrap().remove(claim);
        assert_eq!(verify(&signed(&header, &content.to_string(), &key), &key), Err(form.clone()), "without {claim}");
    }
    let terms = GrantStatementError::Terms;
    let many: Vec<String> = (1_000..1_500).map(|number| Uuid::from_u128(number).to_string()).collect();
    let cases = [
        ("iss", json!(OTHER.to_string()), GrantStatementError::OtherTenant),
        ("iss", json!(TENANT.simple().to_string()), form.clone()),
        ("iss", json!(format!("{{{TENANT}}}")), form.clone()),
        ("iss", json!("00000000-0000-0000-0000-00000000007E"), form.clone()),
        ("iss", json!(null), form.clone()),
        ("jti", json!(OTHER.to_string()), GrantStatementError::OtherGrant { named: OTHER }),
        ("jti", json!(""), form.clone()),
        ("iat", json!("1"), form.clone()),
        ("iat", json!(1.5), form.clone()),
        ("iat", json!(-1), terms(TermsError::Times)),
        ("nbf", json!(null), form.clone()),
        ("nbf", json!((NOW + Duration::HOUR).unix_timestamp()), terms(TermsError::Times)),
        ("iat", json!((NOW + Duration::HOUR).unix_timestamp()), terms(TermsError::Times)),
        ("exp", json!(i64::MAX), terms(TermsError::Times)),
        ("exp", json!(u64::MAX), form.clone()),
        ("exp", json!(1e300), form.clone()),
        ("exp", json!(0), terms(TermsError::Times)),
        ("scopes", json!([]), terms(TermsError::Scopes)),
        ("scopes", json!("device:reboot"), form.clone()),
        ("scopes", json!(["device:reboot", "device:reboot"]), terms(TermsError::Scopes)),
        ("scopes", json!(["device:reboot", "*"]), terms(TermsError::Scopes)),
        ("scopes", json!(["DEVICE:REBOOT"]), terms(TermsError::Scopes)),
        ("scopes", json!(["x".repeat(65)]), terms(TermsError::Scopes)),
        ("scopes", json!((0..65).map(|number| format!("s{number}")).collect::<Vec<_>>()), terms(TermsError::Scopes)),
        ("devices", json!([]), terms(TermsError::Devices)),
        ("devices", json!(null), form.clone()),
        ("devices", json!(["*"]), form.clone()),
        ("devices", json!([DEVICE.to_string(), DEVICE.to_string()]), terms(TermsError::Devices)),
        ("devices", json!(many), GrantStatementError::OtherDevice),
        ("operators", json!([]), terms(TermsError::Operators)),
        ("operators", json!(["me"]), form.clone()),
        ("reason", json!(""), terms(TermsError::Reason)),
        ("reason", json!("x".repeat(1025)), terms(TermsError::Reason)),
        ("reason", json!("a\u{1b}[2Jb"), terms(TermsError::Reason)),
        ("reason", json!("a\nb"), terms(TermsError::Reason)),
        ("request", json!("no id"), form.clone()),
        ("request", json!(7), form.clone()),
    ];
    for (claim, value, expected) in cases {
        let mut content = content();
        content[claim] = value.clone();
        let text = signed(&header, &content.to_string(), &key);
        assert!(verify(&text, &key) == Err(expected), "{claim} {value:.100}");
    }
}

#[test]
fn what_is_there_twice_is_refused() {
    let key = key_of(KeyAlgorithm::Ed25519);
    let twice = |object: &Value, member: &str, value: &str| {
        let text = object.to_string();
        let begin = text.strip_suffix('}').unwrap();
        format!("{begin},{}:{value}}}", json!(member))
    };
    for (member, value) in [("alg", "\"none\""), ("kid", "\"\""), ("typ", "\"JWT\""), ("\u{61}lg", "\"EdDSA\"")] {
        let text = signed(&twice(&header(&key), member, value), &content().to_string(), &key);
        assert_eq!(verify(&text, &key), Err(GrantStatementError::Jws(JwsError::Header)), "{member}");
    }
    for (member, value) in [("exp", "9999999999"), ("devices", "[]"), ("jti", "null"), ("scopes", "[\"shell:open\"]")] {
        let text = signed(&header(&key).to_string(), &twice(&content(), member, value), &key);
        assert_eq!(verify(&text, &key), Err(GrantStatementError::Jws(JwsError::Content)), "{member}");
    }
    // The same name, written in another way.
    let text = content().to_string().replace("\"reason\":", "\"e\\u0078p\":9999999999,\"reason\":");
    let text = signed(&header(&key).to_string(), &text, &key);
    assert_eq!(verify(&text, &key), Err(GrantStatementError::Jws(JwsError::Content)));
}

#[test]
fn forms_that_are_not_the_compact_one_are_refused() {
    let key = key_of(KeyAlgorithm::Ed25519);
    let text = statement().sign(&key).unwrap();
    let parts: Vec<&str> = text.split('.').collect();
    let [header, content, signature] = parts[..] else { panic!("three parts") };
    // The last character of 64 bytes has four bits that mean nothing: only zeros are taken.
    let (whole, last) = signature.split_at(signature.len() - 1);
    let not_zero = char::from(last.as_bytes()[0] + 1);
    let cases = [
        String::new(),
        "..".to_owned(),
        header.to_owned(),
        format!("{header}.{content}"),
        format!("{text}."),
        format!("{text}.{signature}"),
        format!("{text}="),
        format!("{text}\n"),
        format!(" {text}"),
        format!("{header}.{content}.{whole}{not_zero}"),
        text.replace('-', "+").replace('_', "/") + "+",
        format!("{{\"payload\":\"{content}\",\"protected\":\"{header}\",\"signature\":\"{signature}\"}}"),
    ];
    for case in cases {
        let error = verify(&case, &key).unwrap_err();
        assert!(matches!(error, GrantStatementError::Jws(JwsError::Form | JwsError::Header)), "{case:?}: {error:?}");
    }
    let no_signature = format!("{header}.{content}.");
    assert_eq!(verify(&no_signature, &key), Err(GrantStatementError::Jws(JwsError::Signature)));
    let large = format!("{text}{}", "A".repeat(GRANT_STATEMENT_BYTES_MAX));
    assert_eq!(verify(&large, &key), Err(GrantStatementError::Jws(JwsError::TooLarge)));
}

#[test]
fn what_would_not_be_taken_is_not_signed() {
    let key = key_of(KeyAlgorithm::Ed25519);
    let bad = [
        GrantStatement { scopes: vec![], ..statement() },
        GrantStatement { devices: vec![], ..statement() },
        GrantStatement { operators: Some(vec![]), ..statement() },
        GrantStatement { reason: String::new(), ..statement() },
        GrantStatement { ends_at: statement().starts_at, ..statement() },
        GrantStatement { ends_at: NOW + Duration::milliseconds(1500), ..statement() },
        GrantStatement { devices: (0..1000).map(Uuid::from_u128).collect(), ..statement() },
    ];
    for statement in bad {
        assert!(statement.sign(&key).is_err(), "{statement:?}");
    }
}

static KEY: LazyLock<PrivateKey> = LazyLock::new(|| key_of(KeyAlgorithm::Ed25519));
static TEXT: LazyLock<String> = LazyLock::new(|| statement().sign(&KEY).unwrap());

proptest! {
    #[test]
    fn arbitrary_texts_are_refused_without_panic(
        text in any::<String>(), header in any::<String>(), content in any::<String>(), signature in "[A-Za-z0-9_-]{0,90}",
    ) {
        for text in [text, format!("{}.{}.{signature}", part(&header), part(&content))] {
            prop_assert!(verify(&text, &KEY).is_err());
        }
    }

    #[test]
    fn what_a_trusted_key_signs_is_read_without_panic(content in "[\\{\\}\\[\\]\",:a-z0-9 .eE+-]{0,200}", nested in 0_usize..400) {
        let deep = format!("{}{}", "[".repeat(nested), "]".repeat(nested));
        for content in [content, deep] {
            let text = signed(&header(&KEY).to_string(), &content, &KEY);
            prop_assert!(verify(&text, &KEY).is_err());
        }
    }

    #[test]
    fn no_change_of_a_genuine_statement_is_taken(at in any::<prop::sample::Index>(), byte in 0x20_u8..0x7f) {
        let mut text = TEXT.clone().into_bytes();
        let at = at.index(text.len());
        prop_assume!(text[at] != byte);
        text[at] = byte;
        prop_assert!(verify(&String::from_utf8(text).unwrap(), &KEY).is_err());
    }
}
