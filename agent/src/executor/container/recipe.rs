//! What the new container is made of: the old one's configuration, without what it has from its image only.

use std::collections::HashMap;

use bollard::models::{
    ContainerConfig, ContainerCreateBody, ContainerInspectResponse, EndpointSettings, HostConfig, ImageConfig, Mount,
    MountPoint, MountType, NetworkingConfig, RestartPolicy, RestartPolicyNameEnum,
};

/// Which command made a container.
pub(super) const LABEL: &str = "net.cloudlink.command";
/// How an engine abbreviates the id of a container, where it names the machine by it.
const SHORT_ID_CHARS: usize = 12;
/// Networks that are none of their own: nothing is said about them but the mode.
const BUILT_IN_NETWORKS: [&str; 4] = ["default", "bridge", "host", "none"];

/// How a container is to be made.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) body: ContainerCreateBody,
    /// The networks that it is connected to besides the first.
    pub(super) networks: Vec<(String, EndpointSettings)>,
}

/// By what the container is found that a command has made.
pub(super) fn label(command: &str) -> String {
    format!("{LABEL}={command}")
}

/// What of two containers is at most one started by: an engine that starts while both are there would start both.
pub(super) fn never() -> RestartPolicy {
    RestartPolicy { name: Some(RestartPolicyNameEnum::NO), ..RestartPolicy::default() }
}

/// Why a container is not to be replaced.
pub(super) fn obstacle(old: &ContainerInspectResponse) -> Option<&'static str> {
    let host = old.host_config.as_ref()?;
    if old.state.as_ref().is_some_and(|state| state.paused == Some(true)) {
        return Some("it is paused");
    }
    if host.auto_remove == Some(true) {
        return Some("it is removed as soon as it is stopped (--rm): there would be nothing to go back to");
    }
    if host.links.as_ref().is_some_and(|links| !links.is_empty()) {
        return Some("it has links of the old kind: use a network");
    }
    let labels = old.config.as_ref().and_then(|config| config.labels.as_ref());
    if labels.is_some_and(|labels| labels.contains_key("com.docker.swarm.service.id")) {
        return Some("a swarm looks after it");
    }
    None
}

/// A container like this one, of another image. It is not started by the engine itself: nobody has seen it run.
pub(super) fn recipe(old: ContainerInspectResponse, of_old_image: ImageConfig, image: &str, command: &str) -> Recipe {
    let id = old.id.unwrap_or_default();
    let mut host = old.host_config.unwrap_or_default();
    host.container_id_file = None;
    host.restart_policy = Some(never());
    keep_volumes(&mut host, old.mounts.unwrap_or_default());
    let mode = host.network_mode.clone().unwrap_or_default();
    let networks = old.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let (first, networks) = split_networks(&mode, networks, &id);

    let mut body = own_configuration(old.config.unwrap_or_default(), of_old_image);
    let is_named_by_id = body.hostname.as_ref().is_some_and(|name| is_short_id(name, &id));
    let shares_network = mode.starts_with("container:");
    if is_named_by_id || shares_network || host.uts_mode.as_deref() == Some("host") {
        body.hostname = None;
    }
    if shares_network {
        body.exposed_ports = None;
    }
    body.image = Some(image.to_owned());
    body.labels.get_or_insert_default().insert(LABEL.to_owned(), command.to_owned());
    body.networking_config =
        first.map(|first| NetworkingConfig { endpoints_config: Some(HashMap::from([(mode, first)])) });
    body.host_config = Some(host);
    Recipe { body, networks }
}

/// What was said when the container was made. What is the same in its image comes from the image, and is the new one's to say.
fn own_configuration(old: ContainerConfig, image: ImageConfig) -> ContainerCreateBody {
    // Who names a program of their own leaves nothing of the image's arguments.
    let same_program = old.entrypoint == image.entrypoint;
    ContainerCreateBody {
        hostname: old.hostname,
        domainname: old.domainname,
        user: unless_same(old.user, image.user.as_ref()),
        attach_stdin: old.attach_stdin,
        attach_stdout: old.attach_stdout,
        attach_stderr: old.attach_stderr,
        exposed_ports: without(old.exposed_ports, image.exposed_ports),
        tty: old.tty,
        open_stdin: old.open_stdin,
        stdin_once: old.stdin_once,
        env: without(old.env, image.env),
        cmd: if same_program { unless_same(old.cmd, image.cmd.as_ref()) } else { old.cmd },
        healthcheck: unless_same(old.healthcheck, image.healthcheck.as_ref()),
        volumes: without(old.volumes, image.volumes),
        working_dir: unless_same(old.working_dir, image.working_dir.as_ref()),
        entrypoint: if same_program { None } else { old.entrypoint },
        network_disabled: old.network_disabled,
        labels: old.labels.map(|labels| {
            let of_image = image.labels.unwrap_or_default();
            labels.into_iter().filter(|(key, value)| of_image.get(key) != Some(value)).collect()
        }),
        stop_signal: unless_same(old.stop_signal, image.stop_signal.as_ref()),
        stop_timeout: old.stop_timeout,
        shell: unless_same(old.shell, image.shell.as_ref()),
        ..ContainerCreateBody::default()
    }
}

fn unless_same<T: PartialEq>(own: Option<T>, of_image: Option<&T>) -> Option<T> {
    own.filter(|own| Some(own) != of_image)
}

fn without(own: Option<Vec<String>>, of_image: Option<Vec<String>>) -> Option<Vec<String>> {
    let of_image = of_image.unwrap_or_default();
    own.map(|own| own.into_iter().filter(|entry| !of_image.contains(entry)).collect())
}

/// Volumes without a name of their own were made for the old container, and hold its data: the new one gets them by the names that
/// the engine gave them.
fn keep_volumes(host: &mut HostConfig, mounted: Vec<MountPoint>) {
    for point in mounted.into_iter().filter(|point| point.typ.as_deref() == Some("volume")) {
        let (Some(name), Some(target)) = (point.name, point.destination) else { continue };
        let is_there = |place: &str| place.trim_end_matches('/') == target.trim_end_matches('/');
        let is_bound = host.binds.iter().flatten().any(|bind| bind.split(':').nth(1).is_some_and(is_there));
        let mounts = host.mounts.get_or_insert_default();
        match mounts.iter_mut().find(|mount| mount.target.as_deref().is_some_and(is_there)) {
            Some(mount) if mount.source.as_ref().is_none_or(String::is_empty) => mount.source = Some(name),
            Some(_) => {}
            None if is_bound => {}
            None => mounts.push(Mount {
                target: Some(target),
                source: Some(name),
                typ: Some(MountType::VOLUME),
                read_only: Some(point.rw == Some(false)),
                ..Mount::default()
            }),
        }
    }
}

/// What is said of the network that the container is made in, and the others. Engines take no more than one when they make a
/// container, but for the newest.
fn split_networks(
    mode: &str,
    networks: HashMap<String, EndpointSettings>,
    id: &str,
) -> (Option<EndpointSettings>, Vec<(String, EndpointSettings)>) {
    let (mut first, mut others) = (None, Vec::new());
    for (name, endpoint) in networks {
        let is_first = name == mode || endpoint.network_id.as_deref() == Some(mode);
        if BUILT_IN_NETWORKS.contains(&mode) && (is_first || mode == "default" && name == "bridge") {
            continue;
        }
        if is_first { first = Some(asked_for(endpoint, id)) } else { others.push((name, asked_for(endpoint, id))) }
    }
    (first, others)
}

/// Of an endpoint what somebody has asked for, and not what the engine has found.
fn asked_for(endpoint: EndpointSettings, id: &str) -> EndpointSettings {
    let is_own = |alias: &String| !is_short_id(alias, id);
    let aliases = endpoint.aliases.map(|aliases| aliases.into_iter().filter(is_own).collect());
    EndpointSettings {
        ipam_config: endpoint.ipam_config,
        links: endpoint.links,
        aliases,
        driver_opts: endpoint.driver_opts,
        gw_priority: endpoint.gw_priority,
        ..EndpointSettings::default()
    }
}

fn is_short_id(name: &str, id: &str) -> bool {
    name.len() == SHORT_ID_CHARS && id.starts_with(name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn recipe_of(old: Value, image: Value) -> (Value, Vec<(String, EndpointSettings)>) {
        let mut old: ContainerInspectResponse = serde_json::from_value(old).unwrap();
        old.id = Some(ID.to_owned());
        let made = recipe(old, serde_json::from_value(image).unwrap(), "a@sha256:00", "command");
        (serde_json::to_value(made.body).unwrap(), made.networks)
    }

    #[test]
    fn what_comes_from_the_image_is_the_new_images_to_say() {
        let old = json!({ "Config": {
            "Env": ["PATH=/bin", "OWN=1"], "Cmd": ["serve"], "Entrypoint": ["/app"], "User": "app", "WorkingDir": "/own",
            "Labels": { "version": "1", "own": "x" }, "ExposedPorts": { "80/tcp": {}, "81/tcp": {} }, "StopSignal": "SIGINT",
            "Healthcheck": { "Test": ["CMD", "check"] }, "Hostname": &ID[..12],
        } });
        let image = json!({
            "Env": ["PATH=/bin"], "Cmd": ["serve"], "Entrypoint": ["/app"], "User": "app", "WorkingDir": "/", "Labels": { "version": "1" },
            "ExposedPorts": { "80/tcp": {} }, "StopSignal": "SIGTERM", "Healthcheck": { "Test": ["CMD", "check"] },
        });
        let (body, _) = recipe_of(old, image);
        assert_eq!(body["Env"], json!(["OWN=1"]));
        assert_eq!((&body["WorkingDir"], &body["StopSignal"]), (&json!("/own"), &json!("SIGINT")));
        assert_eq!(body["Labels"], json!({ "own": "x", LABEL: "command" }));
        assert_eq!(body["ExposedPorts"], json!({ "81/tcp": {} }));
        for key in ["Cmd", "Entrypoint", "User", "Healthcheck", "Hostname"] {
            assert!(body[key].is_null(), "{key}: {body}");
        }
        assert_eq!(body["Image"], "a@sha256:00");
    }

    #[test]
    fn who_names_the_program_names_its_arguments() {
        let old = json!({ "Config": { "Cmd": ["serve"], "Entrypoint": ["/own"] } });
        let (body, _) = recipe_of(old, json!({ "Cmd": ["serve"], "Entrypoint": ["/app"] }));
        assert_eq!((&body["Entrypoint"], &body["Cmd"]), (&json!(["/own"]), &json!(["serve"])));
    }

    #[test]
    fn volumes_without_a_name_are_kept_and_others_are_as_they_were() {
        let volume = |name: &str, target: &str, rw: bool| json!({ "Type": "volume", "Name": name, "Destination": target, "RW": rw });
        let old = json!({
            "HostConfig": {
                "Binds": ["/srv:/host:ro", "named:/named/"],
                "Mounts": [{ "Type": "volume", "Target": "/asked" }, { "Type": "volume", "Source": "own", "Target": "/own" }],
            },
            "Mounts": [
                volume("a1", "/asked", true), volume("own", "/own", true), volume("named", "/named", true), volume("b2", "/of-image", false),
                json!({ "Type": "bind", "Source": "/srv", "Destination": "/host" }),
            ],
        });
        let (body, _) = recipe_of(old, json!({}));
        assert_eq!(body["HostConfig"]["Binds"], json!(["/srv:/host:ro", "named:/named/"]));
        let mounts = body["HostConfig"]["Mounts"].as_array().unwrap();
        let sources: Vec<_> =
            mounts.iter().map(|mount| (mount["Target"].as_str().unwrap(), &mount["Source"])).collect();
        assert_eq!(sources, [("/asked", &json!("a1")), ("/own", &json!("own")), ("/of-image", &json!("b2"))]);
        assert_eq!(mounts[2]["ReadOnly"], true);
    }

    #[test]
    fn of_networks_only_what_was_asked_for_is_kept() {
        let endpoint = json!({
            "Aliases": ["db", &ID[..12]], "IPAMConfig": { "IPv4Address": "192.0.2.7" }, "NetworkID": "n1", "IPAddress": "192.0.2.7",
            "MacAddress": "02:42:00:00:00:01",
        });
        let networks = json!({ "front": endpoint, "back": { "NetworkID": "n2" } });
        let old = json!({ "HostConfig": { "NetworkMode": "front" }, "NetworkSettings": { "Networks": networks } });
        let (body, others) = recipe_of(old, json!({}));
        let expected = json!({ "front": { "Aliases": ["db"], "IPAMConfig": { "IPv4Address": "192.0.2.7" } } });
        assert_eq!(body["NetworkingConfig"]["EndpointsConfig"], expected);
        assert_eq!(others, [("back".to_owned(), EndpointSettings::default())]);

        let old =
            json!({ "HostConfig": { "NetworkMode": "default" }, "NetworkSettings": { "Networks": { "bridge": {} } } });
        let (body, others) = recipe_of(old, json!({}));
        assert!(body["NetworkingConfig"].is_null() && others.is_empty(), "{body}");

        // What is somebody else's network has somebody else's name.
        let old = json!({ "Config": { "Hostname": "other", "ExposedPorts": { "80/tcp": {} } }, "HostConfig": { "NetworkMode": "container:1" } });
        let (body, _) = recipe_of(old, json!({}));
        assert!(body["Hostname"].is_null() && body["ExposedPorts"].is_null(), "{body}");
    }
}
