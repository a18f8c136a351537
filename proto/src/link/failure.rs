//! What goes wrong on ways to the server, in words that both sides know.

/// `TransportFailure.code`, besides `status_` with the three digits of an HTTP status. In the order of the alphabet.
pub const FAILURE_CODES: [&str; 40] = [
    "alert",
    "broken",
    "certificate_expired",
    "client_failed",
    "closed",
    "connection_refused",
    "connection_reset",
    "forbidden",
    "gone",
    "io_error",
    "no_address",
    "no_basic_login",
    "no_hello",
    "no_login",
    "no_password",
    "no_profile",
    "no_program",
    "no_request",
    "no_tls",
    "no_tunnel",
    "no_welcome",
    "not_a_proxy",
    "not_a_websocket",
    "not_an_answer",
    "not_enrolled",
    "not_resolved",
    "not_tls",
    "other_certificate",
    "overloaded",
    "permission_denied",
    "protocol_error",
    "refused",
    "replaced",
    "revoked",
    "shutting_down",
    "timed_out",
    "unreachable",
    "version",
    "wrong_interface",
    "wrong_login",
];

/// Whether a failure's code is one of [`FAILURE_CODES`], or the status of an HTTP answer.
#[must_use]
pub fn is_failure_code(code: &str) -> bool {
    let is_status = |digits: &str| matches!(digits.as_bytes(), [b'1'..=b'5', b'0'..=b'9', b'0'..=b'9']);
    FAILURE_CODES.binary_search(&code).is_ok() || code.strip_prefix("status_").is_some_and(is_status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_known_and_nothing_else_is() {
        assert!(FAILURE_CODES.is_sorted());
        for code in FAILURE_CODES.into_iter().chain(["status_403", "status_100", "status_599"]) {
            assert!(is_failure_code(code), "{code}");
        }
        for code in ["", "other", "status_", "status_600", "status_40", "status_4033", "status_4a3", "timed_outs"] {
            assert!(!is_failure_code(code), "{code}");
        }
    }
}
