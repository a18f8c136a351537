//! Compiles `link.proto` in pure Rust, so that a build needs no protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["src/link/link.proto"], ["src/link"])?;
    prost_build::Config::new()
        .bytes(["."])
        // The others are small, and there are as many as there are links.
        .boxed(".cloudlink.link.v1.ServerMessage.kind.stream_request")
        .compile_fds(files)?;
    println!("cargo:rerun-if-changed=src/link/link.proto");
    Ok(())
}
