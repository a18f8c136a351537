use clap::{Args, CommandFactory};
use std::io::Write;

use super::Line;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct Completion {
    shell: clap_complete::Shell,
}

impl Completion {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Line::command(), "cloudlink", &mut script);
        std::io::stdout().lock().write_all(&script).map_err(Failure::of_output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_free_of_contradictions() {
        Line::command().debug_assert();
    }
}
