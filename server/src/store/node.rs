//! Nodes and their leases. What a node had that is gone, the others close.
//!
//! That a lease has ended is not read from the database's clock, which may jump, and which goes on while nobody reaches the database:
//! whoever says that another is gone has seen its row to stay the same for a whole lease (`cluster::tenure`). Only a name that is to go to
//! another data directory waits for that clock. (`nodes.steady_since` is read by nodes of 0.1 only.)

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::types::PgInterval;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::node::{Node, State as NodeState};
use crate::model::status::Condition;

/// Held by the transaction that begins to drain a node. Any number will do.
const DRAIN_LOCK: i64 = 0x0064_7261_696e;

/// A node that wants its place.
#[derive(Clone, Debug)]
pub struct NewNode {
    pub name: String,
    /// Of its data directory.
    pub instance: Uuid,
    /// Of this run.
    pub life: Uuid,
    pub version: &'static str,
    /// Where other nodes reach it.
    pub address: Option<String>,
    pub lease: Duration,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It has its lease.
    Yes,
    /// Another data directory has the name, so long.
    Taken { until: OffsetDateTime },
}

/// Takes a lease on the node's name: a new one, its own of before, or one that has ended, or whose node is taken to be gone.
pub async fn node_join(connection: &mut PgConnection, node: &NewNode) -> Result<Joined, StoreError> {
    let joined = sqlx::query!(
        "insert into nodes as n (name, instance, life, version, address, lease, leased_until)
         values ($1, $2, $3, $4, $5, $6, clock_timestamp() + $6)
             on conflict (name) do update
            set instance = excluded.instance, life = excluded.life, version = excluded.version, address = excluded.address,
                lease = excluded.lease, leased_until = excluded.leased_until, started_at = clock_timestamp(),
                renewed_at = clock_timestamp(), gone_at = null,
                draining_since = null, drain_by = null, handshake_us = null, handshakes_per_second = null, condition = null
          where n.instance = excluded.instance or n.gone_at is not null or n.leased_until < clock_timestamp()",
        node.name,
        node.instance,
        node.life,
        node.version,
        node.address,
        interval(node.lease),
    )
    .execute(&mut *connection)
    .await?;
    if joined.rows_affected() > 0 {
        return Ok(Joined::Yes);
    }
    let until = sqlx::query_scalar!("select leased_until from nodes where name = $1", node.name);
    Ok(until.fetch_optional(connection).await?.map_or(Joined::Yes, |until| Joined::Taken { until }))
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}

/// A renewed lease.
#[derive(Clone, Debug, PartialEq)]
pub struct Renewed {
    /// Others have taken this node to be gone then, and close what it had, until it acknowledges that.
    pub gone_at: Option<OffsetDateTime>,
    /// The other nodes.
    pub others: Vec<Peer>,
}

/// Another node, that nobody has taken to be gone.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    pub name: String,
    /// Where it can be reached by nodes.
    pub address: Option<String>,
    /// It sends its own devices away.
    pub is_draining: bool,
    /// New links that it takes, if it says so.
    pub handshakes_per_second: Option<f32>,
    /// By the database's clock, which may jump: another time than before shows that it has renewed its lease, and nothing else.
    pub renewed_at: OffsetDateTime,
    pub lease: Duration,
}

/// What a node says that it can take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// Processor time of one handshake, once one was measured.
    pub handshake_us: Option<i32>,
    pub handshakes_per_second: f32,
}

/// Renews the lease of this life of the node. `None`: another life has the name.
///
/// A node that others have taken to be gone stays so until it says that it knows, having given up what it had: an answer may be lost.
pub async fn node_renew(
    connection: &mut PgConnection,
    node: &NewNode,
    offer: Option<Offer>,
    acknowledged: Option<OffsetDateTime>,
) -> Result<Option<Renewed>, StoreError> {
    let gone_at = sqlx::query_scalar!(
        "update nodes set renewed_at = clock_timestamp(), leased_until = clock_timestamp() + $3, lease = $3,
                          gone_at = nullif(gone_at, $4), handshake_us = $5, handshakes_per_second = $6
          where name = $1 and life = $2
         returning gone_at",
        node.name,
        node.life,
        interval(node.lease),
        acknowledged,
        offer.and_then(|offer| offer.handshake_us),
        offer.map(|offer| offer.handshakes_per_second),
    );
    let Some(gone_at) = gone_at.fetch_optional(&mut *connection).await? else { return Ok(None) };
    Ok(Some(Renewed { gone_at, others: node_list_others(connection, &node.name).await? }))
}

/// Says how this life of the node is.
pub async fn node_tell(connection: &mut PgConnection, node: &NewNode, condition: Condition) -> Result<(), StoreError> {
    sqlx::query!(
        "update nodes set condition = $3 where name = $1 and life = $2",
        node.name,
        node.life,
        Json(condition) as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The other nodes that nobody has taken to be gone.
pub async fn node_list_others(connection: &mut PgConnection, name: &str) -> Result<Vec<Peer>, StoreError> {
    let others = sqlx::query!(
        r#"select name, address, coalesce(draining_since >= started_at, false) as "is_draining!", handshakes_per_second,
                  renewed_at, (extract(epoch from lease) * 1000)::bigint as "lease_ms!"
             from nodes where name <> $1 and gone_at is null order by name"#,
        name,
    );
    let others = others.fetch_all(connection).await?.into_iter().map(|row| Peer {
        name: row.name,
        address: row.address,
        is_draining: row.is_draining,
        handshakes_per_second: row.handshakes_per_second,
        renewed_at: row.renewed_at,
        lease: Duration::from_millis(row.lease_ms.unsigned_abs()),
    });
    Ok(others.collect())
}

/// A node that this one has seen to renew nothing for as long as its lease lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    pub name: String,
    /// As it was all the time.
    pub renewed_at: OffsetDateTime,
}

/// Says of other nodes that they are gone, unless they have renewed their leases after all.
pub async fn node_expire(
    connection: &mut PgConnection,
    node: &NewNode,
    suspects: &[Suspect],
) -> Result<Vec<String>, StoreError> {
    let (names, renewed): (Vec<String>, Vec<OffsetDateTime>) =
        suspects.iter().map(|suspect| (suspect.name.clone(), suspect.renewed_at)).unzip();
    let gone = sqlx::query_scalar!(
        "update nodes n set gone_at = clock_timestamp(), leased_until = least(n.leased_until, clock_timestamp())
           from nodes me, unnest($3::text[], $4::timestamptz[]) as suspect(name, renewed_at)
          where me.name = $1 and me.life = $2
            and n.name = suspect.name and n.renewed_at = suspect.renewed_at and n.name <> me.name and n.gone_at is null
         returning n.name",
        node.name,
        node.life,
        &names,
        &renewed,
    );
    Ok(gone.fetch_all(connection).await?)
}

/// Gives back the lease of a node that stops.
pub async fn node_leave(connection: &mut PgConnection, node: &NewNode) -> Result<(), StoreError> {
    sqlx::query!(
        "update nodes set gone_at = clock_timestamp(), leased_until = clock_timestamp() where name = $1 and life = $2",
        node.name,
        node.life,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether another node goes on taking devices. Until the transaction ends, nobody else is told so: of two that are drained at the
/// same time, each would count on the other.
pub async fn node_others_stay_in_txn(connection: &mut PgConnection, name: &str) -> Result<bool, StoreError> {
    sqlx::query!("select pg_advisory_xact_lock($1)", DRAIN_LOCK).fetch_one(&mut *connection).await?;
    Ok(node_list_others(connection, name).await?.iter().any(|other| !other.is_draining))
}

/// Says that a node which holds its lease sends its devices away from now on, for at most so long. Gives back what it is known by;
/// `None`: it does not hold it.
pub async fn node_drain(
    connection: &mut PgConnection,
    name: &str,
    within: Duration,
) -> Result<Option<Uuid>, StoreError> {
    let drained = sqlx::query_scalar!(
        "update nodes set draining_since = case when draining_since >= started_at then draining_since else clock_timestamp() end,
                          drain_by = clock_timestamp() + $2
          where name = $1 and leased_until >= clock_timestamp()
         returning instance",
        name,
        interval(within),
    );
    Ok(drained.fetch_optional(connection).await?)
}

/// Says that a node takes devices again. `None`: it was not drained.
pub async fn node_resume(connection: &mut PgConnection, name: &str) -> Result<Option<Uuid>, StoreError> {
    let resumed = sqlx::query_scalar!(
        "update nodes set draining_since = null, drain_by = null
          where name = $1 and draining_since >= started_at and leased_until >= clock_timestamp()
         returning instance",
        name,
    );
    Ok(resumed.fetch_optional(connection).await?)
}

/// Nodes by name: all but those that left or died longer ago than `gone_within`, or one, whatever became of it.
pub async fn node_list(
    connection: &mut PgConnection,
    name: Option<&str>,
    gone_within: Duration,
) -> Result<Vec<Node>, StoreError> {
    let rows = sqlx::query!(
        r#"select n.name, n.version, n.started_at, n.renewed_at, n.leased_until, n.gone_at,
                  n.gone_at is null and n.leased_until >= clock_timestamp() as "is_leased!",
                  extract(epoch from clock_timestamp() - n.renewed_at)::float8 as "renewed_ago!",
                  coalesce(n.draining_since >= n.started_at, false) as "is_draining!",
                  n.draining_since, n.drain_by, n.handshake_us, n.handshakes_per_second,
                  n.condition as "condition: Json<Condition>",
                  (select count(*) from links l where l.node = n.name and l.closed_at is null) as "links!",
                  (select count(*) from links l where l.node = n.name and l.closed_at is null and l.tunnel_id is not null)
                      as "tunnels!",
                  (select count(*) from support_sessions s where s.node = n.name and s.ended_at is null)
                      as "support_sessions!"
             from nodes n
            where ($1::text is null or n.name = $1)
              and ($1 is not null or n.leased_until >= clock_timestamp() - $2::interval)
            order by n.name"#,
        name,
        interval(gone_within),
    )
    .fetch_all(connection)
    .await?;
    let node = rows.into_iter().map(|row| Node {
        state: match (row.is_leased, row.is_draining) {
            (false, _) => NodeState::Gone,
            (true, true) if row.links == 0 => NodeState::Drained,
            (true, true) => NodeState::Draining,
            (true, false) => NodeState::Serving,
        },
        name: row.name,
        version: row.version,
        started_at: row.started_at,
        renewed_at: row.renewed_at,
        renewed_ago_seconds: row.renewed_ago.max(0.0),
        leased_until: row.leased_until,
        gone_at: row.gone_at,
        draining_since: row.draining_since.filter(|_| row.is_draining),
        drain_by: row.drain_by.filter(|_| row.is_draining),
        links: row.links,
        tunnels: row.tunnels,
        support_sessions: row.support_sessions,
        handshake_us: row.handshake_us,
        handshakes_per_second: row.handshakes_per_second,
        condition: row.condition.map(|condition| condition.0),
        is_asked: false,
    });
    Ok(node.collect())
}

/// One node, whatever became of it.
pub async fn node_show(connection: &mut PgConnection, name: &str) -> Result<Option<Node>, StoreError> {
    Ok(node_list(connection, Some(name), Duration::ZERO).await?.pop())
}

/// Whether others have taken a node to be gone, which it does not come back from until the transaction ends.
pub async fn node_is_gone_in_txn(connection: &mut PgConnection, name: &str) -> Result<bool, StoreError> {
    let gone = sqlx::query_scalar!("select name from nodes where name = $1 and gone_at is not null for share", name);
    Ok(gone.fetch_optional(connection).await?.is_some())
}

/// The nodes that are gone and whose rows say otherwise still: of links, or of support sessions.
pub async fn node_list_unsettled(connection: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    let names = sqlx::query_scalar!(
        "select name from nodes n
          where gone_at is not null
            and (exists (select from links l where l.node = n.name and l.closed_at is null)
                 or exists (select from support_sessions s where s.node = n.name and s.ended_at is null))
          order by name"
    );
    Ok(names.fetch_all(connection).await?)
}

#[cfg(test)]
mod tests {
    use sqlx::PgPool;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const OFFER: Option<Offer> = Some(Offer { handshake_us: Some(800), handshakes_per_second: 50.0 });

    fn node(name: &str, lease: Duration) -> NewNode {
        let (instance, life) = (Uuid::new_v4(), Uuid::new_v4());
        NewNode { name: name.to_owned(), instance, life, version: "1", address: None, lease }
    }

    async fn age(pool: &PgPool, name: &str, by: &str) {
        sqlx::query(
            "update nodes set leased_until = leased_until - $2::interval, renewed_at = renewed_at - $2::interval
              where name = $1",
        )
        .bind(name)
        .bind(by)
        .execute(pool)
        .await
        .unwrap();
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn a_name_is_its_data_directorys_until_the_lease_ends(pool: PgPool) {
        let mut connection = pool.acquire().await.unwrap();
        let first = node("one", LONG);
        assert_eq!(node_join(&mut connection, &first).await.unwrap(), Joined::Yes);
        let other = node("one", LONG);
        assert!(matches!(node_join(&mut connection, &other).await.unwrap(), Joined::Taken { .. }));
        let again = NewNode { life: Uuid::new_v4(), ..first.clone() };
        assert_eq!(node_join(&mut connection, &again).await.unwrap(), Joined::Yes, "the same machine, restarted");
        assert_eq!(node_renew(&mut connection, &first, OFFER, None).await.unwrap(), None, "its life of before");
        age(&pool, "one", "2 hours").await;
        assert_eq!(node_join(&mut connection, &other).await.unwrap(), Joined::Yes);
        assert_eq!(node_renew(&mut connection, &again, OFFER, None).await.unwrap(), None);
    }

    /// The others, as this node sees them.
    async fn suspects(connection: &mut PgConnection, node: &NewNode) -> Vec<Suspect> {
        let others = node_list_others(connection, &node.name).await.unwrap();
        others.into_iter().map(|Peer { name, renewed_at, .. }| Suspect { name, renewed_at }).collect()
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn who_has_renewed_nothing_since_it_was_seen_is_gone_and_is_told_so_until_it_knows(pool: PgPool) {
        let mut connection = pool.acquire().await.unwrap();
        let (one, two) = (node("one", LONG), node("two", LONG));
        node_join(&mut connection, &one).await.unwrap();
        node_join(&mut connection, &two).await.unwrap();
        let before = suspects(&mut connection, &one).await;
        node_renew(&mut connection, &two, OFFER, None).await.unwrap().unwrap();
        assert!(node_expire(&mut connection, &one, &before).await.unwrap().is_empty(), "it has renewed");
        let now = suspects(&mut connection, &one).await;
        assert!(node_expire(&mut connection, &one, &[]).await.unwrap().is_empty(), "nobody is suspected");
        assert_eq!(node_expire(&mut connection, &one, &now).await.unwrap(), ["two"]);
        assert!(node_expire(&mut connection, &one, &now).await.unwrap().is_empty(), "once");
        assert!(suspects(&mut connection, &one).await.is_empty());
        let told = node_renew(&mut connection, &two, OFFER, None).await.unwrap().unwrap().gone_at;
        assert!(told.is_some(), "it is told that it was missed");
        assert_eq!(
            node_renew(&mut connection, &two, OFFER, None).await.unwrap().unwrap().gone_at,
            told,
            "until it knows"
        );
        let two_is = node_show(&mut connection, "two").await.unwrap().unwrap().state;
        assert_eq!(two_is, NodeState::Gone, "it has renewed its lease, and serves nobody");
        assert!(suspects(&mut connection, &one).await.is_empty());
        assert_eq!(node_renew(&mut connection, &two, OFFER, told).await.unwrap().unwrap().gone_at, None);
        assert_eq!(suspects(&mut connection, &one).await.len(), 1);
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn an_earlier_life_takes_nobody_to_be_gone(pool: PgPool) {
        let mut connection = pool.acquire().await.unwrap();
        let (one, two) = (node("one", LONG), node("two", LONG));
        node_join(&mut connection, &one).await.unwrap();
        node_join(&mut connection, &two).await.unwrap();
        let suspects = suspects(&mut connection, &one).await;
        let earlier = NewNode { life: Uuid::new_v4(), ..one.clone() };
        assert!(node_expire(&mut connection, &earlier, &suspects).await.unwrap().is_empty());
        assert_eq!(node_expire(&mut connection, &one, &suspects).await.unwrap(), ["two"]);
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn a_node_that_leaves_frees_its_name(pool: PgPool) {
        let mut connection = pool.acquire().await.unwrap();
        let (one, other) = (node("one", LONG), node("one", LONG));
        node_join(&mut connection, &one).await.unwrap();
        node_leave(&mut connection, &one).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(node_join(&mut connection, &other).await.unwrap(), Joined::Yes);
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn another_machine_has_the_name_of_one_that_is_gone_whatever_the_clock_says(pool: PgPool) {
        let mut connection = pool.acquire().await.unwrap();
        let (one, two, other) = (node("one", LONG), node("two", LONG), node("two", LONG));
        node_join(&mut connection, &one).await.unwrap();
        node_join(&mut connection, &two).await.unwrap();
        let silent = suspects(&mut connection, &one).await;
        assert_eq!(node_expire(&mut connection, &one, &silent).await.unwrap(), ["two"]);
        // The clock was put back since.
        sqlx::query("update nodes set leased_until = leased_until + interval '1 hour'").execute(&pool).await.unwrap();
        assert_eq!(node_join(&mut connection, &other).await.unwrap(), Joined::Yes);
        assert_eq!(node_renew(&mut connection, &two, OFFER, None).await.unwrap(), None);
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn nodes_know_one_another_until_they_are_gone(pool: PgPool) {
        let mut connection = pool.acquire().await.unwrap();
        let one = node("one", LONG);
        let two = NewNode { address: Some("10.0.0.2:7443".to_owned()), ..node("two", LONG) };
        node_join(&mut connection, &one).await.unwrap();
        node_join(&mut connection, &two).await.unwrap();
        let others = node_renew(&mut connection, &one, OFFER, None).await.unwrap().unwrap().others;
        let [silent] = others.as_slice() else { panic!("{others:?}") };
        assert_eq!((silent.name.as_str(), &silent.address, silent.lease), ("two", &two.address, LONG));
        assert_eq!((silent.is_draining, silent.handshakes_per_second), (false, None));
        node_renew(&mut connection, &two, OFFER, None).await.unwrap().unwrap();
        let others = node_renew(&mut connection, &one, OFFER, None).await.unwrap().unwrap().others;
        assert_eq!(others[0].handshakes_per_second, Some(50.0));
        node_leave(&mut connection, &two).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(node_renew(&mut connection, &one, OFFER, None).await.unwrap().unwrap().others.is_empty());
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn of_two_nodes_that_are_drained_at_once_one_stays(pool: PgPool) {
        for name in ["one", "two"] {
            node_join(&mut pool.acquire().await.unwrap(), &node(name, LONG)).await.unwrap();
        }
        let drain = async |name| {
            let mut transaction = pool.begin().await.unwrap();
            let is_let = node_others_stay_in_txn(&mut transaction, name).await.unwrap();
            if is_let {
                // For the other one to look meanwhile.
                tokio::time::sleep(Duration::from_millis(200)).await;
                node_drain(&mut transaction, name, LONG).await.unwrap();
            }
            transaction.commit().await.unwrap();
            is_let
        };
        let (one, two) = tokio::join!(drain("one"), drain("two"));
        assert!(one != two, "one: {one}, two: {two}");
    }

    async fn states(connection: &mut PgConnection) -> Vec<NodeState> {
        node_list(connection, None, Duration::ZERO).await.unwrap().iter().map(|node| node.state).collect()
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn a_node_is_drained_until_it_resumes_or_begins_anew(pool: PgPool) {
        let mut connection = pool.acquire().await.unwrap();
        let (one, two) = (node("one", LONG), node("two", LONG));
        node_join(&mut connection, &one).await.unwrap();
        node_join(&mut connection, &two).await.unwrap();
        assert_eq!(states(&mut connection).await, [NodeState::Serving, NodeState::Serving]);
        assert_eq!(node_drain(&mut connection, "three", LONG).await.unwrap(), None, "nobody of that name");
        assert_eq!(node_resume(&mut connection, "two").await.unwrap(), None, "it is not drained");
        assert_eq!(node_drain(&mut connection, "two", LONG).await.unwrap(), Some(two.instance));
        let since = node_list(&mut connection, Some("two"), LONG).await.unwrap()[0].draining_since;
        assert!(since.is_some() && node_drain(&mut connection, "two", LONG * 2).await.unwrap().is_some());
        let again = node_list(&mut connection, Some("two"), LONG).await.unwrap().remove(0);
        assert_eq!((again.draining_since, again.state), (since, NodeState::Drained), "it has no links");
        let others = node_renew(&mut connection, &one, OFFER, None).await.unwrap().unwrap().others;
        assert!(others[0].is_draining);
        assert_eq!(node_resume(&mut connection, "two").await.unwrap(), Some(two.instance));
        assert_eq!(states(&mut connection).await, [NodeState::Serving, NodeState::Serving]);
        node_drain(&mut connection, "two", LONG).await.unwrap();
        // As an older version begins anew, which knows nothing of it.
        sqlx::query("update nodes set started_at = clock_timestamp() where name = 'two'").execute(&pool).await.unwrap();
        assert_eq!(states(&mut connection).await, [NodeState::Serving, NodeState::Serving]);
        node_leave(&mut connection, &two).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(states(&mut connection).await, [NodeState::Serving]);
        assert_eq!(node_drain(&mut connection, "two", LONG).await.unwrap(), None, "it is gone");
        assert_eq!(node_list(&mut connection, Some("two"), LONG).await.unwrap()[0].state, NodeState::Gone);
    }
}
