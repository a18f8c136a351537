//! What somebody types to this program and not to the remote shell: `~.` at the beginning of a line, as with ssh.

const ESCAPE: u8 = b'~';

/// Looks for escapes in what is typed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Escape {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    LineStart,
    Tilde,
    Line,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Typed {
    /// For the remote shell.
    pub(crate) bytes: Vec<u8>,
    /// `~.`: leave. What was typed after that is for nobody.
    pub(crate) leave: bool,
    /// `~?`: say what there is.
    pub(crate) help: bool,
}

impl Escape {
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self { state: State::LineStart }
    }

    pub(crate) fn feed(&mut self, typed: &[u8]) -> Typed {
        let mut out = Typed::default();
        for &byte in typed {
            self.state = match (self.state, byte) {
                (State::LineStart, ESCAPE) => State::Tilde,
                (State::Tilde, b'.') => {
                    out.leave = true;
                    return out;
                }
                (State::Tilde, b'?') => {
                    out.help = true;
                    State::LineStart
                }
                (State::Tilde, ESCAPE) => {
                    out.bytes.push(ESCAPE);
                    State::Line
                }
                (State::Tilde, byte) => {
                    out.bytes.extend([ESCAPE, byte]);
                    after(byte)
                }
                (State::LineStart | State::Line, byte) => {
                    out.bytes.push(byte);
                    after(byte)
                }
            };
        }
        out
    }
}

const fn after(byte: u8) -> State {
    match byte {
        b'\r' | b'\n' => State::LineStart,
        _ => State::Line,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("~.", "", true)]
    #[case("ls\r~.rest", "ls\r", true)]
    #[case("ls\n~.", "ls\n", true)]
    #[case("a~.", "a~.", false)]
    #[case("~~.", "~.", false)]
    #[case("~~", "~", false)]
    #[case("~a~.", "~a~.", false)]
    #[case("~\r~.", "~\r", true)]
    #[case("~/bin/x\r", "~/bin/x\r", false)]
    #[case("~", "", false)]
    #[case(" ~.", " ~.", false)]
    fn only_at_the_beginning_of_a_line(#[case] typed: &str, #[case] sent: &str, #[case] leave: bool) {
        let out = Escape::new().feed(typed.as_bytes());
        assert_eq!((String::from_utf8(out.bytes).unwrap().as_str(), out.leave), (sent, leave));
    }

    #[test]
    fn help_can_be_asked_for_again_at_once() {
        let mut escape = Escape::new();
        assert!(escape.feed(b"~?").help);
        assert!(escape.feed(b"~?").help);
        assert!(escape.feed(b"~.").leave);
    }

    proptest! {
        #[test]
        fn where_the_pieces_are_cut_makes_no_difference(typed in "[~.?a\r]{0,12}", at in 0_usize..12) {
            let whole = Escape::new().feed(typed.as_bytes());
            let mut escape = Escape::new();
            let (one, other) = typed.as_bytes().split_at(at.min(typed.len()));
            let mut pieces = escape.feed(one);
            if !pieces.leave {
                let rest = escape.feed(other);
                pieces.bytes.extend(rest.bytes);
                pieces.leave = rest.leave;
                pieces.help |= rest.help;
            }
            prop_assert_eq!(pieces, whole);
        }

        #[test]
        fn what_is_no_escape_arrives_unchanged(typed in "[a-z.?\r\n]{0,40}") {
            prop_assert_eq!(Escape::new().feed(typed.as_bytes()), Typed { bytes: typed.into_bytes(), ..Typed::default() });
        }
    }
}
