use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// What the kernel keeps of a comment.
const COMMENT_BYTES_MAX: usize = 128;

fn policy() -> Policy {
    let slice = Slice::new("10.9.0.0/16".parse().unwrap(), 24, "fd12:3456:789a::/48".parse().unwrap(), 3).unwrap();
    Policy::new(&Config::default(), &slice)
}

fn rules(policy: &Policy) -> Vec<Value> {
    let commands = policy.ruleset(TABLE, true).into_iter();
    commands.filter_map(|mut command| Some(command["add"]["rule"].take()).filter(|rule| !rule.is_null())).collect()
}

/// A rule in few words: what it is about, and how it ends.
fn told(rule: &Value) -> String {
    let expressions = rule["expr"].as_array().unwrap();
    let endings: Vec<_> = expressions
        .iter()
        .filter_map(|expression| expression.as_object().unwrap().iter().next())
        .filter(|(kind, _)| !["match", "limit", "set"].contains(&kind.as_str()))
        .map(|(kind, body)| {
            let name = body.as_str().or_else(|| body["target"].as_str());
            name.map_or_else(|| kind.clone(), |name| format!("{kind} {name}"))
        })
        .collect();
    format!("{}: {} -> {}", rule["chain"].as_str().unwrap(), rule["comment"].as_str().unwrap(), endings.join(", "))
}

#[test]
fn the_rules_of_ipv4_are_these() {
    let chains = ["cl_enter", "cl_tunnel4", "cl_services4", "cl_input", "cl_forward"];
    let told: Vec<_> =
        rules(&policy()).iter().map(told).filter(|told| chains.iter().any(|chain| told.starts_with(chain))).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn every_rule_says_what_it_is_about_and_counts_it() {
    for rule in rules(&policy()) {
        let words = rule["comment"].as_str().unwrap();
        assert!((1..=COMMENT_BYTES_MAX).contains(&words.len()), "{words}");
        let expressions = rule["expr"].as_array().unwrap();
        assert!(expressions.contains(&json!({"counter": null})), "{rule}");
        let is_drop = expressions.contains(&json!({"drop": null}));
        let reasons = expressions.iter().filter_map(|expression| expression["counter"].as_str());
        let reasons: Vec<_> = reasons.map(|name| Reason::of_counter(name).unwrap()).collect();
        assert_eq!(reasons.len(), usize::from(is_drop), "{rule}");
    }
}

#[test]
fn each_reason_is_one_of_a_rule() {
    let text = Value::Array(rules(&policy())).to_string();
    for reason in Reason::ALL {
        assert!(text.contains(&format!("\"{}\"", reason.counter())), "{reason:?}");
        assert_eq!(Reason::of_counter(&reason.counter()), Some(reason));
    }
    assert_eq!(Reason::of_counter("cl_drop_else"), None);
}

#[test]
fn chains_for_packets_of_tunnels_end_in_a_drop_of_everything() {
    let all = rules(&policy());
    let dropped = ["counter", "counter", "drop"].as_slice();
    let passed_on = ["counter", "goto"].as_slice();
    for (chain, ending) in [
        ("cl_tunnel4", passed_on),
        ("cl_tunnel6", passed_on),
        ("cl_services4", dropped),
        ("cl_services6", dropped),
        ("cl_local", dropped),
        ("cl_out", dropped),
    ] {
        let last = all.iter().rfind(|rule| rule["chain"] == chain).unwrap();
        let kinds: Vec<_> = last["expr"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one.as_object().unwrap().keys().next().unwrap())
            .collect();
        assert_eq!(kinds, ending, "{chain}");
    }
}

#[test]
fn the_forwarding_of_others_is_ours_in_the_scope_of_the_host_alone() {
    for (scope, word) in [(Scope::Host, "drop"), (Scope::Interface, "accept")] {
        let policy = Policy { scope, ..policy() };
        let commands = policy.ruleset(TABLE, true);
        let chain = commands.iter().find(|command| command["add"]["chain"]["name"] == "cl_forward").unwrap();
        assert_eq!(chain["add"]["chain"]["policy"], word);
    }
}

#[test]
fn all_chains_are_in_the_order_of_the_page() {
    let commands = policy().ruleset(TABLE, true);
    let made: BTreeSet<_> = commands.iter().filter_map(|command| command["add"]["chain"]["name"].as_str()).collect();
    assert_eq!(made, BTreeSet::from(CHAINS));
}

#[test]
fn rules_without_hooks_are_the_same_rules() {
    let policy = policy();
    let rules = |table, hooked| {
        let mut text = Value::Array(policy.ruleset(table, hooked)).to_string();
        text = text.replace(table, "cl_table");
        let mut rules: Vec<Value> = serde_json::from_str(&text).unwrap();
        rules.retain(|command| command["add"].get("chain").is_none());
        rules
    };
    assert!(rules("cl_this", true) == rules("cl_that", false));
    let unhooked = Value::Array(policy.ruleset("cl_that", false)).to_string();
    assert!(!unhooked.contains("\"hook\""), "{unhooked}");
}

proptest! {
    #[test]
    fn what_is_declared_differently_has_another_hash_and_survives_its_file(
        link_port: u16, echo in 1_u32..100_000, number in 0_u32..256, is_host: bool,
    ) {
        let pool = "10.9.0.0/16".parse().unwrap();
        let slice = Slice::new(pool, 24, "fd12:3456:789a::/48".parse().unwrap(), number).unwrap();
        let scope = if is_host { Scope::Host } else { Scope::Interface };
        let base = Policy::new(&Config::default(), &slice);
        let changed = Policy { link_port, echo_requests_per_second: echo, scope, ..base };
        prop_assert_eq!(changed.hash() == policy().hash(), changed == policy());
        let read: Policy = serde_json::from_slice(&serde_json::to_vec(&changed).unwrap()).unwrap();
        prop_assert_eq!(&read, &changed);
        // No device of another slice passes.
        let text = Value::Array(rules(&changed)).to_string();
        prop_assert!(text.contains(&changed.ipv4.network().to_string()));
    }
}
