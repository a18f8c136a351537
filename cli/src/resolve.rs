//! From names to things and back: people write `gw-1`, the API wants ids.

use std::collections::{BTreeSet, HashMap};

use cloudlink_certs::GrantStatement;
use futures_util::stream;
use futures_util::{StreamExt, TryStreamExt};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::client::{Answer, Client, DeviceFilter, List};
use crate::failure::Failure;
use crate::model::{
    AccessPolicy, AccessRequest, Command, Device, Grant, Group, Opening, Person, Recording, SupportSession, Tenant,
    Threshold,
};

/// Things that are looked through for one name.
const LOOKED_THROUGH_MAX: usize = 20_000;
/// Ids of one table that are shown with a name.
const NAMED_MAX: usize = 64;
/// Devices from which names are offered in place of an unknown one.
const SUGGESTED_FROM_MAX: usize = 1000;
const LOOKUPS_AT_ONCE: usize = 8;
/// Names that are offered in place of an unknown one.
const SUGGESTIONS_MAX: usize = 3;
const SUGGESTION_LIKENESS_MIN: f64 = 0.8;

/// What has a name and an id.
pub(crate) trait Named {
    const NOUN: &'static str;
    fn id(&self) -> Uuid;
    fn name(&self) -> &str;
    /// What tells it from others of the same name.
    fn distinction(&self) -> String;
}

impl Named for Device {
    const NOUN: &'static str = "device";

    fn id(&self) -> Uuid {
        self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn distinction(&self) -> String {
        format!("of tenant {}, {}", self.tenant_id, self.state)
    }
}

impl Named for Person {
    const NOUN: &'static str = "person";

    fn id(&self) -> Uuid {
        self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn distinction(&self) -> String {
        self.role.clone()
    }
}

impl Named for Tenant {
    const NOUN: &'static str = "tenant";

    fn id(&self) -> Uuid {
        self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn distinction(&self) -> String {
        String::new()
    }
}

impl Named for Group {
    const NOUN: &'static str = "group";

    fn id(&self) -> Uuid {
        self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn distinction(&self) -> String {
        self.selector.clone()
    }
}

impl Named for Threshold {
    const NOUN: &'static str = "threshold";

    fn id(&self) -> Uuid {
        self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn distinction(&self) -> String {
        self.metric.clone()
    }
}

/// A device by its id or its unique name.
pub(crate) async fn device(client: &Client, text: &str) -> Result<Answer<Device>, Failure> {
    // Lists carry no ETag.
    client.device(device_id(client, text).await?).await
}

/// The ids of several devices.
pub(crate) async fn device_ids(client: &Client, texts: &[String]) -> Result<Vec<Uuid>, Failure> {
    stream::iter(texts).map(|text| device_id(client, text)).buffered(LOOKUPS_AT_ONCE).try_collect().await
}

/// The ids of the devices that have such labels now, but for those that are revoked.
pub(crate) async fn labelled_ids(client: &Client, filter: &DeviceFilter, max: usize) -> Result<Vec<Uuid>, Failure> {
    let list = client.devices(LOOKED_THROUGH_MAX, filter).await?;
    let active = list.items.iter().filter(|device| device.value.revoked_at.is_none());
    let devices: Vec<_> = active.map(|device| device.value.id).collect();
    if devices.is_empty() {
        return Err(Failure::NotFound("no device has these labels".to_owned()));
    }
    if devices.len() > max {
        return Err(Failure::Usage(format!(
            "more than {max} devices have these labels\nThat is too many for one: make several."
        )));
    }
    Ok(devices)
}

async fn device_id(client: &Client, text: &str) -> Result<Uuid, Failure> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let filter = DeviceFilter { name: Some(text.to_owned()), ..DeviceFilter::default() };
    let named = client.devices(LOOKED_THROUGH_MAX, &filter).await?;
    if named.items.is_empty() {
        // Some others, for a hint at what may have been meant.
        let others = client.devices(SUGGESTED_FROM_MAX, &DeviceFilter::default()).await?;
        return find(others, text).map(|device| device.value.id);
    }
    find(named, text).map(|device| device.value.id)
}

pub(crate) async fn person(client: &Client, text: &str) -> Result<Answer<Person>, Failure> {
    let all = client.people(LOOKED_THROUGH_MAX).await?;
    match text.parse::<Uuid>() {
        Ok(id) => by_id(all, id),
        Err(_) => find(all, text),
    }
}

/// The ids of several operators.
pub(crate) async fn operator_ids(client: &Client, texts: &[String]) -> Result<Vec<Uuid>, Failure> {
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    let mut all = client.people(LOOKED_THROUGH_MAX).await?;
    all.items.retain(|person| person.value.role == "operator");
    texts
        .iter()
        .map(|text| match text.parse() {
            Ok(id) => Ok(id),
            Err(_) => one_named(&all, text).map(|person| person.value.id),
        })
        .collect()
}

pub(crate) async fn tenant(client: &Client, text: &str) -> Result<Answer<Tenant>, Failure> {
    let id = match text.parse() {
        Ok(id) => id,
        Err(_) => find(client.tenants(LOOKED_THROUGH_MAX).await?, text)?.value.id,
    };
    client.tenant(id).await
}

pub(crate) async fn group(client: &Client, text: &str) -> Result<Answer<Group>, Failure> {
    let id = match text.parse() {
        Ok(id) => id,
        Err(_) => find(client.groups(LOOKED_THROUGH_MAX).await?, text)?.value.id,
    };
    client.group(id).await
}

pub(crate) async fn threshold(client: &Client, text: &str) -> Result<Answer<Threshold>, Failure> {
    let id = match text.parse() {
        Ok(id) => id,
        Err(_) => find(client.thresholds(LOOKED_THROUGH_MAX).await?, text)?.value.id,
    };
    client.threshold(id).await
}

/// The id of what can only be named by id.
pub(crate) fn id(noun: &str, text: &str) -> Result<Uuid, Failure> {
    id_listed(noun, text, &format!("{noun}s"))
}

/// The same, of what is listed by another command than its plural.
pub(crate) fn id_listed(noun: &str, text: &str, list: &str) -> Result<Uuid, Failure> {
    text.parse().map_err(|_| {
        Failure::Usage(format!("`{text}` is not the id of a {noun}\nExpected a UUID; list them with: cloudlink {list}"))
    })
}

fn by_id<T: Named>(all: List<T>, id: Uuid) -> Result<Answer<T>, Failure> {
    all.items
        .into_iter()
        .find(|item| item.value.id() == id)
        .ok_or_else(|| Failure::NotFound(format!("there is no {} {id}", T::NOUN)))
}

fn find<T: Named + Clone + DeserializeOwned>(all: List<T>, text: &str) -> Result<Answer<T>, Failure> {
    one_named(&all, text).cloned()
}

fn one_named<'a, T: Named>(all: &'a List<T>, text: &str) -> Result<&'a Answer<T>, Failure> {
    let matching: Vec<_> = all.items.iter().filter(|item| item.value.name() == text).collect();
    match matching.as_slice() {
        [one] => Ok(one),
        [] => Err(Failure::NotFound(unknown(all, text))),
        several => {
            let lines: Vec<_> =
                several.iter().map(|item| format!("{}  {}", item.value.id(), item.value.distinction())).collect();
            Err(Failure::Usage(format!(
                "there are {} {}s called `{text}`: say which by its id\n{}",
                several.len(),
                T::NOUN,
                lines.join("\n  ")
            )))
        }
    }
}

fn unknown<T: Named>(all: &List<T>, text: &str) -> String {
    let mut alike: Vec<_> = all
        .items
        .iter()
        .map(|item| (strsim::jaro_winkler(&item.value.name().to_lowercase(), &text.to_lowercase()), item.value.name()))
        .filter(|(likeness, _)| *likeness >= SUGGESTION_LIKENESS_MIN)
        .collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    let names: Vec<_> = alike.iter().take(SUGGESTIONS_MAX).map(|(_, name)| format!("`{name}`")).collect();
    let advice = match (names.is_empty(), all.has_more) {
        (false, _) => format!("Did you mean {}?", names.join(" or ")),
        (true, true) => "List them, or give its id.".to_owned(),
        (true, false) => format!("You see {} of them.", all.items.len()),
    };
    format!("there is no {} `{text}`, or none that you may see\n{advice}", T::NOUN)
}

/// Names for the ids in a table, as far as the caller may see them.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<Uuid, String>);

impl Names {
    /// For these devices and people.
    pub(crate) async fn load(client: &Client, devices: BTreeSet<Uuid>, people: BTreeSet<Uuid>) -> Self {
        let mut names: HashMap<_, _> = stream::iter(devices.into_iter().take(NAMED_MAX))
            .map(|id| client.device(id))
            .buffer_unordered(LOOKUPS_AT_ONCE)
            // An id is shown where its name cannot be had.
            .filter_map(async |device| device.ok().map(|device| (device.value.id, device.value.name)))
            .collect()
            .await;
        if !people.is_empty() {
            match client.people(LOOKED_THROUGH_MAX).await {
                Ok(list) => names.extend(list.items.into_iter().map(|person| (person.value.id, person.value.name))),
                // Operators may not list people: they are told ids, but for their own.
                Err(_) => names.extend(client.me().await.ok().map(|me| (me.value.id, me.value.name))),
            }
        }
        Self(names)
    }

    pub(crate) async fn of_commands(client: &Client, commands: &[Answer<Command>]) -> Self {
        let devices = commands.iter().map(|command| command.value.device_id).collect();
        Self::load(client, devices, commands.iter().map(|command| command.value.requested_by).collect()).await
    }

    pub(crate) async fn of_openings(client: &Client, openings: &[Answer<Opening>]) -> Self {
        let devices = openings.iter().map(|opening| opening.value.device_id).collect();
        Self::load(client, devices, openings.iter().map(|opening| opening.value.opened_by).collect()).await
    }

    pub(crate) async fn of_sessions(client: &Client, sessions: &[Answer<SupportSession>]) -> Self {
        let devices = sessions.iter().map(|session| session.value.device_id).collect();
        let guests = sessions.iter().flat_map(|session| session.value.guests.iter().map(|guest| guest.person_id));
        Self::load(client, devices, guests.chain(sessions.iter().map(|session| session.value.opened_by)).collect())
            .await
    }

    pub(crate) async fn of_recordings(client: &Client, recordings: &[Answer<Recording>]) -> Self {
        let devices = recordings.iter().map(|recording| recording.value.device_id).collect();
        Self::load(client, devices, recordings.iter().map(|recording| recording.value.opened_by).collect()).await
    }

    pub(crate) async fn of_grants(client: &Client, grants: &[Answer<Grant>]) -> Self {
        let devices = grants.iter().flat_map(|grant| grant.value.device_ids.iter().flatten().copied()).collect();
        let operators = grants.iter().flat_map(|grant| grant.value.operator_ids.iter().flatten().copied());
        Self::load(client, devices, operators.chain(grants.iter().map(|grant| grant.value.created_by)).collect()).await
    }

    pub(crate) async fn of_statement(client: &Client, statement: &GrantStatement) -> Self {
        let operators = statement.operators.iter().flatten().copied().collect();
        Self::load(client, statement.devices.iter().copied().collect(), operators).await
    }

    pub(crate) async fn of_requests(client: &Client, requests: &[Answer<AccessRequest>]) -> Self {
        let devices = requests.iter().flat_map(|request| request.value.device_ids.iter().flatten().copied()).collect();
        let people = requests.iter().flat_map(|Answer { value, .. }| {
            let deciders = value.decisions.iter().map(|decision| decision.person_id);
            deciders.chain(value.operator_ids.iter().flatten().copied()).chain([value.requested_by])
        });
        Self::load(client, devices, people.collect()).await
    }

    pub(crate) async fn of_policies(client: &Client, policies: &[Answer<AccessPolicy>]) -> Self {
        let devices = policies.iter().flat_map(|policy| policy.value.device_ids.iter().flatten().copied()).collect();
        let people = policies.iter().flat_map(|Answer { value, .. }| {
            let others = [Some(value.created_by), value.approved_by, value.revoked_by].into_iter().flatten();
            others.chain(value.operator_ids.iter().flatten().copied())
        });
        Self::load(client, devices, people.collect()).await
    }

    #[must_use]
    pub(crate) fn name(&self, id: Uuid) -> String {
        self.0.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    #[must_use]
    pub(crate) fn list(&self, ids: &[Uuid]) -> String {
        ids.iter().map(|id| self.name(*id)).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn tenants(names: &[&str]) -> List<Tenant> {
        let items = names.iter().zip(1_u128..).map(|(name, id)| Answer {
            value: Tenant {
                id: Uuid::from_u128(id),
                name: (*name).to_owned(),
                grant_max_seconds: 60,
                approvals_needed: 1,
                fewer_approvals: None,
                signed_grants: false,
                recording_keep_days: 365,
                created_at: jiff::Timestamp::UNIX_EPOCH,
            },
            json: Value::Null,
            etag: None,
        });
        List { items: items.collect(), has_more: false }
    }

    #[test]
    fn a_unique_name_is_found() {
        assert_eq!(one_named(&tenants(&["north", "south"]), "south").unwrap().value.id, Uuid::from_u128(2));
    }

    #[test]
    fn a_part_of_a_name_is_no_name() {
        let failure = one_named(&tenants(&["north", "south"]), "nort").unwrap_err();
        assert_eq!(failure.exit_code(), 4);
        assert!(failure.report(false).unwrap().contains("Did you mean `north`?"));
    }

    #[test]
    fn an_ambiguous_name_is_answered_with_the_ids() {
        let failure = one_named(&tenants(&["north", "north"]), "north").unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        let report = failure.report(false).unwrap();
        assert!(report.contains("00000000-0000-0000-0000-000000000001"), "{report}");
        assert!(report.contains("00000000-0000-0000-0000-000000000002"), "{report}");
    }
}
