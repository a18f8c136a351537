//! A database that is switched from one host to another by force.

use anyhow::ensure;
use cloudlink_tests::cluster::Database;
use sqlx::{Connection as _, Executor as _};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_is_where_it_is_switched_to() -> anyhow::Result<()> {
    let mut database = Database::start_with_standby().await?;
    let mut owner = database.look().await?;
    owner.execute("create table committed (round integer)").await?;
    owner.close().await?;
    for round in 0..3_i32 {
        let mut owner = database.look().await?;
        sqlx::query("insert into committed values ($1)").bind(round).execute(&mut owner).await?;
        database.switch_over().await?;
        database.follow_again().await?;
        let mut owner = database.look().await?;
        let count: i64 = sqlx::query_scalar("select count(*) from committed").fetch_one(&mut owner).await?;
        ensure!(count == i64::from(round) + 1, "{count}");
    }
    Ok(())
}
