//! Compiles `link.proto` and `poll.proto` in pure Rust, so that a build needs no protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // First: it would leave an empty module of the messages that it takes from the other one.
    let files = protox::compile(["src/poll/poll.proto"], ["src/poll", "src/link"])?;
    prost_build::Config::new()
        .bytes(["."])
        .extern_path(".cloudlink.link.v1", "crate::link::message")
        .compile_fds(files)?;
    let files = protox::compile(["src/link/link.proto"], ["src/link"])?;
    prost_build::Config::new()
        .bytes(["."])
        // The others are small, and there are as many as there are links.
        .boxed(".cloudlink.link.v1.ServerMessage.kind.stream_request")
        .boxed(".cloudlink.link.v1.Command.kind.container_update")
        .boxed(".cloudlink.link.v1.Command.kind.os_update")
        .boxed(".cloudlink.link.v1.Command.kind.agent_update")
        .compile_fds(files)?;
    println!("cargo:rerun-if-changed=src/link/link.proto");
    println!("cargo:rerun-if-changed=src/poll/poll.proto");
    Ok(())
}
