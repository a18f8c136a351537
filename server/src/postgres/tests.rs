use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    set_mode(directory.path(), 0o755);
    directory
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

async fn start(data_dir: &Path) -> Result<Postgres, PostgresError> {
    Postgres::start(&config::Postgres::default(), data_dir, Arc::new(Metrics::new())).await
}

#[tokio::test]
async fn what_a_killed_initdb_left_is_made_anew() {
    let directory = directory();
    let unfinished = directory.path().join("postgres/data.new");
    std::fs::create_dir_all(&unfinished).unwrap();
    std::fs::write(unfinished.join("PG_VERSION"), "15\n").unwrap();

    let postgres = start(directory.path()).await.unwrap();
    assert!(!unfinished.exists());
    postgres.stop().await;
    assert!(!directory.path().join("postgres/data/postmaster.pid").exists());
}

#[tokio::test]
async fn a_directory_too_deep_for_a_socket_is_told_with_its_length() {
    let directory = directory();
    let deep = directory.path().join("d".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    let error = start(&deep).await.unwrap_err().to_string();
    assert!(error.contains("use a shorter data_dir"), "{error}");
}

#[tokio::test]
async fn a_directory_that_the_other_user_cannot_enter_is_told_with_what_to_type() {
    // Only root runs Postgres as another user.
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let directory = directory();
    set_mode(directory.path(), 0o700);
    let data_dir = directory.path().join("data");
    std::fs::create_dir(&data_dir).unwrap();
    let error = start(&data_dir).await.unwrap_err().to_string();
    let path = directory.path().canonicalize().unwrap();
    assert!(error.ends_with(&format!("chmod o+x {}", path.display())), "{error}");
}
