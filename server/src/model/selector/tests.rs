//! The grammar by hand, and by chance: what is printed is read as the same, what is read never panics, and the database says of a
//! device what [`Selector::matches`] says.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use rstest::rstest;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::types::Json;

use super::*;

fn selector(text: &str) -> Selector {
    Draft::parse(text)
        .and_then(|draft| draft.resolve(&BTreeMap::new()))
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refused(text: &str) -> SelectorError {
    Draft::parse(text).and_then(|draft| draft.resolve(&BTreeMap::new())).unwrap_err()
}

fn labels(value: serde_json::Value) -> Labels {
    serde_json::from_value(value).unwrap()
}

#[rstest]
#[case("site=north", "site=north")]
#[case(" site == north ,\trole in ( b , a ) ", "role in (a,b),site=north")]
#[case("role in (a)", "role=a")]
#[case("env notin (test)", "env!=test")]
#[case("env!=test,env!=lab", "env notin (lab,test)")]
#[case("retired", "retired")]
#[case("!retired", "!retired")]
#[case("! retired", "!retired")]
#[case("env,env!=test", "env,env!=test")]
#[case("env,env notin(b,a)", "env,env notin (a,b)")]
#[case("role in (a,b,c),role notin (b)", "role in (a,c)")]
#[case("role in (a,b),role", "role in (a,b)")]
#[case("!env,env!=test", "!env")]
#[case("site=north,site=north", "site=north")]
#[case("in in (in,notin)", "in in (in,notin)")]
#[case(r#""a,b"="c \"d\" \\ (e)""#, r#""a,b"="c \"d\" \\ (e)""#)]
#[case(r#""site"="north""#, "site=north")]
#[case("straße=österreich/wien:1.2+3", "straße=österreich/wien:1.2+3")]
fn what_means_the_same_is_written_the_same(#[case] text: &str, #[case] canonical: &str) {
    assert_eq!(selector(text).to_string(), canonical);
    assert_eq!(selector(canonical), selector(text));
}

#[rstest]
#[case("site", 1, Fault::Key, ",site")]
#[case("the end", 12, Fault::Key, "site=north,")]
#[case("two commas", 12, Fault::Key, "site=north,,a")]
#[case("no value", 6, Fault::Value, "site=")]
#[case("no value", 7, Fault::Value, "site!=,a")]
#[case("no list", 9, Fault::List, "site in north")]
#[case("an empty list", 10, Fault::Value, "site in ()")]
#[case("an open list", 11, Fault::ListEnd, "site in (a")]
#[case("no comma", 12, Fault::ListEnd, "site in (a b)")]
#[case("another operator", 6, Fault::Operator, "site like a")]
#[case("one of others", 5, Fault::Operator, "site>1")]
#[case("half an operator", 5, Fault::Operator, "site!north")]
#[case("a pattern", 9, Fault::End, "site=nor*")]
#[case("two words", 8, Fault::End, "site=a b")]
#[case("open quotes", 6, Fault::Quotes, "site=\"a")]
#[case("an unknown escape", 6, Fault::Quotes, "site=\"\\n\"")]
#[case("a cut escape", 6, Fault::Quotes, "site=\"\\")]
#[case("an empty word", 6, Fault::Word, "site=\"\"")]
#[case("a control character", 6, Fault::Word, "site=\"a\tb\"")]
#[case("a group without a name", 2, Fault::Group, "@")]
#[case("after characters of several bytes", 4, Fault::Value, "üü=")]
fn what_is_wrong_is_said_with_its_place(
    #[case] _what: &str,
    #[case] at: usize,
    #[case] what: Fault,
    #[case] text: &str,
) {
    assert_eq!(refused(text), SelectorError::Malformed { at, what }, "{text}");
}

#[test]
fn an_empty_selector_means_nothing_and_is_refused() {
    for text in ["", " ", "\t \n"] {
        assert_eq!(refused(text), SelectorError::Empty, "{text:?}");
    }
    assert_eq!(Selector::try_from(&Labels::default()), Err(SelectorError::Empty));
    for stored in [json!({}), json!({"": ""})] {
        assert!(serde_json::from_value::<Selector>(stored).is_err());
    }
}

#[test]
fn what_no_device_can_be_like_is_refused() {
    for text in ["a=1,a=2", "a=1,!a", "!a,a", "a in (1,2),a in (3)", "a=1,a!=1", "a in (1,2),a notin (2,1)"] {
        assert_eq!(refused(text), SelectorError::Contradiction("a".to_owned()), "{text}");
    }
}

#[test]
fn as_much_as_labels_may_be_is_taken_and_no_more() {
    let keys = |count| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
    let values = |count| format!("k in ({})", (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
    selector(&keys(KEYS_MAX));
    selector(&values(VALUES_MAX));
    assert_eq!(refused(&keys(KEYS_MAX + 1)), SelectorError::TooLong);
    assert_eq!(refused(&values(VALUES_MAX + 1)), SelectorError::TooLong);
    assert_eq!(refused(&format!("{}a", " ".repeat(TEXT_BYTES_MAX))), SelectorError::TooLong);
    let unequal: Vec<_> = (0..=DEMANDS_MAX).map(|n| format!("a!={n}")).collect();
    assert_eq!(Draft::parse(&unequal.join(",")), Err(SelectorError::TooLong), "before it is put together");
    let groups: Vec<_> = (0..=GROUPS_MAX).map(|n| format!("@g{n}")).collect();
    assert_eq!(refused(&groups.join(",")), SelectorError::TooLong);
    let long = "\u{1d11e}".repeat(LABEL_CHARS_MAX);
    selector(&format!("\"{long}\"=\"{long}\""));
    assert_eq!(refused(&format!("a={}", "x".repeat(64))), SelectorError::Malformed { at: 3, what: Fault::Word });
}

#[test]
fn a_missing_label_is_not_equal_to_anything() {
    let bare = labels(json!({}));
    for (text, is_met) in
        [("a=1", false), ("a in (1,2)", false), ("a!=1", true), ("a notin (1,2)", true), ("a", false), ("!a", true)]
    {
        assert_eq!(selector(text).matches(&bare), is_met, "{text}");
    }
    assert!(!selector("a,a!=1").matches(&bare));
    assert!(selector("a,a!=1").matches(&labels(json!({"a": "2"}))));
}

#[test]
fn groups_mean_what_they_mean_when_they_are_resolved() {
    let draft = Draft::parse("@north, @\"in use\",env!=test").unwrap();
    assert_eq!(draft.groups(), ["in use", "north"]);
    let mut groups = BTreeMap::from([("north".to_owned(), selector("site=north"))]);
    let error = draft.clone().resolve(&groups).unwrap_err();
    assert_eq!(error, SelectorError::UnknownGroup("in use".to_owned()));
    groups.insert("in use".to_owned(), selector("!retired,env!=lab"));
    assert_eq!(draft.clone().resolve(&groups).unwrap().to_string(), "env notin (lab,test),!retired,site=north");
    groups.insert("in use".to_owned(), selector("site=south"));
    assert_eq!(draft.resolve(&groups).unwrap_err(), SelectorError::Contradiction("site".to_owned()));
}

#[test]
fn who_knows_labels_only_reads_nothing_that_is_wider() {
    let stored = |text| serde_json::to_value(selector(text)).unwrap();
    assert_eq!(stored("a=1,b=2"), json!({"a": "1", "b": "2"}));
    assert_eq!(
        stored("a=1,b in (1,2),!c,d,e notin (3)"),
        json!({"a": "1", "": "in\tb\t1\t2\nabsent\tc\npresent\td\nnotin\te\t3"})
    );
    assert_eq!(selector("a=1,b=2").shown(), labels(json!({"a": "1", "b": "2"})));
    assert_eq!(selector("a=1,!b").shown(), labels(json!({"": "a=1,!b"})));
    for newer in
        [json!({"": "like\ta\tb"}), json!({"": "in\ta"}), json!({"": "absent\ta\tb"}), json!({"a": "1", "": "in"})]
    {
        assert!(serde_json::from_value::<Selector>(newer.clone()).is_err(), "{newer}");
    }
}

/// Few words, so that they meet; some that need quotes.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec!["a", "b", "c", "in"]).prop_map(str::to_owned),
        1 => prop::sample::select(vec!["ü =", "\"\\", "x,y", "@g", "!"]).prop_map(str::to_owned),
        1 => "[^\\p{Cc}]{1,63}",
    ]
}

fn some_labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(word(), word(), 0..6).prop_map(Labels)
}

fn some_selector() -> impl Strategy<Value = Selector> {
    let demand = prop_oneof![
        3 => prop::collection::btree_set(word(), 1..4).prop_map(Demand::OneOf),
        3 => (prop::collection::btree_set(word(), 1..4), any::<bool>())
            .prop_map(|(values, is_there)| Demand::NoneOf { values, is_there }),
        1 => Just(Demand::NoneOf { values: BTreeSet::new(), is_there: true }),
        1 => Just(Demand::Absent),
    ];
    prop::collection::btree_map(word(), demand, 1..5).prop_map(Selector)
}

proptest! {
    #[test]
    fn what_is_printed_is_read_as_the_same(one in some_selector()) {
        prop_assert_eq!(&selector(&one.to_string()), &one);
        let stored = serde_json::to_value(&one).unwrap();
        prop_assert_eq!(serde_json::from_value::<Selector>(stored).unwrap(), one);
    }

    #[test]
    fn whatever_is_read_does_no_harm(text in prop_oneof![".*", "[a-c@!=()\", \\\\innot]{0,40}"]) {
        if let Ok(draft) = Draft::parse(&text) && let Ok(one) = draft.resolve(&BTreeMap::new()) {
            prop_assert_eq!(selector(&one.to_string()), one);
        }
    }

    #[test]
    fn two_selectors_together_fit_what_both_fit(one in some_selector(), other in some_selector(), labels in some_labels()) {
        let fits = one.matches(&labels) && other.matches(&labels);
        match one.and(&other) {
            Ok(both) => prop_assert_eq!(both.matches(&labels), fits),
            Err(_) => prop_assert!(!fits),
        }
    }
}

/// Samples of the same size for the two who must agree: half of the labels are made to fit.
const COMPARED: usize = 4000;

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_database_agrees(pool: PgPoolOptions, database: PgConnectOptions) {
    let mut connection = pool.connect_with(database).await.unwrap().acquire().await.unwrap();
    let mut runner = TestRunner::default();
    let mut draw = || {
        let (one, labels) = (some_selector(), some_labels()).new_tree(&mut runner).unwrap().current();
        let mut fitting = labels.clone();
        for (key, demand) in &one.0 {
            match demand {
                Demand::OneOf(values) => fitting.0.insert(key.clone(), values.first().unwrap().clone()),
                Demand::NoneOf { is_there: true, .. } => fitting.0.insert(key.clone(), "another".to_owned()),
                Demand::NoneOf { .. } | Demand::Absent => fitting.0.remove(key),
            };
        }
        [(one.clone(), labels), (one, fitting)]
    };
    let cases: Vec<_> = (0..COMPARED / 2).flat_map(|_| draw()).collect();
    let (selectors, devices): (Vec<_>, Vec<_>) = cases.iter().map(|(one, labels)| (Json(one), Json(labels))).unzip();
    let answers: Vec<(bool, bool)> = sqlx::query_as(
        "select labels_match(device, selector), device @> selector from unnest($1::jsonb[], $2::jsonb[]) t(device, selector)",
    )
    .bind(devices)
    .bind(selectors)
    .fetch_all(&mut *connection)
    .await
    .unwrap();
    let mut fitted = 0;
    for ((one, labels), (says, said_before)) in cases.iter().zip(answers) {
        assert_eq!(says, one.matches(labels), "{one} and {labels:?}");
        assert!(!said_before || says, "a server of before takes {one} for wider, with {labels:?}");
        fitted += usize::from(says);
    }
    assert!((COMPARED / 2..COMPARED).contains(&fitted), "{fitted} of {COMPARED} fit: the samples show nothing");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_the_database_does_not_understand_fits_nothing(pool: PgPoolOptions, database: PgConnectOptions) {
    let mut connection = pool.connect_with(database).await.unwrap().acquire().await.unwrap();
    let device = json!({"a": "1"});
    for beyond in [
        "",
        "\n",
        "in",
        "in\ta",
        "notin",
        "notin\ta",
        "notin\tb",
        "present",
        "present\ta\tx",
        "absent",
        "absent\tb\tx",
        "like\ta\t1",
        "in\ta\t1\n",
        "\nin\ta\t1",
    ] {
        let fits: bool = sqlx::query_scalar("select labels_match($1, jsonb_build_object('', $2))")
            .bind(&device)
            .bind(beyond)
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        assert!(!fits, "{beyond:?}");
    }
    // Neither true nor null, which would be true for whoever asks whether it does not fit.
    for said in [json!({"": null}), json!({"": null, "a": "1"})] {
        let fits: Option<bool> = sqlx::query_scalar("select labels_match($1, $2)")
            .bind(&device)
            .bind(&said)
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        assert_eq!(fits, Some(false), "{said}");
    }
    let without: Option<bool> =
        sqlx::query_scalar("select labels_match($1, null)").bind(&device).fetch_one(&mut *connection).await.unwrap();
    assert_eq!(without, None);
}
