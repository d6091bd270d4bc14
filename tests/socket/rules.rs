//! What the operator allows, which may change while the plugin runs.

use super::{Policy, Rules, Server, policy, publish_request, set, target};
use aufs_csi::csi::policy::LivePolicy;
use aufs_csi::csi::policy::{Media, SizeRule};
use aufs_csi::csi::v1;
use aufs_csi::image::registry::AllowList;
use aufs_csi::union::probe::UnionRequest;
use tonic::Code;

fn request(volume_id: &str, pairs: &[(&str, &str)]) -> v1::NodePublishVolumeRequest {
    let mut request = publish_request(volume_id);
    for (key, value) in pairs {
        set(&mut request, key, value);
    }
    request
}

#[tokio::test]
async fn a_volume_that_breaks_a_rule_is_refused_by_its_name_and_nothing_is_done() {
    let rules = Rules {
        registries: AllowList::new(vec!["good.example".parse().unwrap()]),
        ..Rules::default()
    };
    let strict = Policy {
        local_images: Vec::new(),
        union: UnionRequest::Overlay,
        rules,
        ..policy()
    };
    let server = Server::with(|settings| settings.policy = strict.into()).await;
    for (pairs, rule, code) in [
        (
            &[("image", "bad.example/app:1")][..],
            "allowedRegistries",
            Code::PermissionDenied,
        ),
        (&[], "localImages", Code::PermissionDenied),
        (
            &[("image", "good.example/app:1"), ("union", "aufs")],
            "allowedUnions",
            // Another node may have it.
            Code::FailedPrecondition,
        ),
    ] {
        let status = server.publish(request("v", pairs)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        let expected = format!("policy rule {rule}: ");
        assert!(status.message().starts_with(&expected), "{status}");
        // Its author hears of it, too.
        let told = server.heard.lines();
        assert!(told.last().unwrap().contains(&expected), "{told:?}");
    }
    assert_eq!(server.fake.calls(), [""; 0]);
    let good = [("image", "good.example/app:1")];
    server.publish(request("v", &good)).await.unwrap();
}

#[tokio::test]
async fn a_later_policy_holds_for_what_is_published_later() {
    let live = LivePolicy::from(policy());
    let given = live.clone();
    let server = Server::with(move |settings| settings.policy = given).await;
    server.publish(request("old", &[])).await.unwrap();
    live.replace(Policy {
        rules: Rules {
            read_only_only: true,
            selinux_context: Some("a:b:c:s0".to_owned()),
            ..Rules::default()
        },
        ..policy()
    });
    let status = server.publish(request("new", &[])).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(
        status.message().contains("policy rule readOnlyOnly"),
        "{status}"
    );
    // kubelet asks again for it when it restarts.
    server.publish(request("old", &[])).await.unwrap();
    assert_eq!(server.fake.calls(), ["publish old"]);
    let mut reading = request("new", &[]);
    reading.readonly = true;
    server.publish(reading).await.unwrap();
    let label = server.fake.published("new").unwrap().label;
    assert_eq!(label.as_deref(), Some("a:b:c:s0"));
    // After a reboot it has to be mounted again, with what its pod wrote.
    server.fake.reboot();
    server.publish(request("old", &[])).await.unwrap();
    assert_eq!(server.fake.calls().last().unwrap(), "publish old");
    let moved = v1::NodePublishVolumeRequest {
        target_path: target("elsewhere"),
        ..request("old", &[])
    };
    let status = server.publish(moved).await.unwrap_err();
    assert!(
        status.message().contains("readOnlyOnly"),
        "not that volume: {status}"
    );
}

#[tokio::test]
async fn a_policy_with_no_place_for_writable_layers_leaves_read_only_volumes() {
    let none = Policy {
        rules: Rules {
            media: Media {
                disk: false,
                memory: false,
            },
            disk: SizeRule {
                default: Some(5),
                maximum: None,
            },
            ..Rules::default()
        },
        ..policy()
    };
    let server = Server::with(|settings| settings.policy = none.into()).await;
    let status = server.publish(request("v", &[])).await.unwrap_err();
    assert!(
        status.message().contains("policy rule allowedMedia"),
        "{status}"
    );
    let mut reading = request("v", &[]);
    reading.readonly = true;
    server.publish(reading).await.unwrap();
    assert_eq!(server.fake.published("v").unwrap().size_limit, None);
}
