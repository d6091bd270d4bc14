//! The `SELinux` label of a volume.

use super::*;

const LABEL: &str = "system_u:object_r:container_file_t:s0";

fn labelled(node: &Node) -> PublishRequest {
    PublishRequest {
        label: Some(LABEL.to_owned()),
        ..node.request()
    }
}

#[test]
fn a_label_is_given_to_every_union_where_the_kernel_has_selinux() {
    for (union, layers, read_only) in [
        (UnionRequest::Aufs, 2, false),
        (UnionRequest::Overlay, 1, false),
        (UnionRequest::Overlay, 2, true),
        // A bind cannot give a label, so these are unions too.
        (UnionRequest::Overlay, 1, true),
        (UnionRequest::Aufs, 1, true),
    ] {
        for has_selinux in [false, true] {
            let node = Node::new(union, layers, read_only, Owner::Plugin);
            let host = Arc::new(FakeHost::new());
            let list = match has_selinux {
                true => "nodev\tselinuxfs\nnodev\toverlay\n",
                false => "nodev\toverlay\n",
            };
            host.write("/proc/filesystems", list);
            let volumes = node.open(&host);
            let published = volumes.publish(&labelled(&node), &()).unwrap();
            let what = format!("{union:?} {layers} {read_only} {has_selinux}");
            let plan = node.record().plan;
            let expected = has_selinux.then(|| LABEL.to_owned());
            assert_eq!(plan.label, expected, "{what}");
            let is_bind = published.backend == Backend::Bind;
            assert_eq!(is_bind, read_only && layers == 1 && !has_selinux, "{what}");
            let option = format!("context=\"{LABEL}\"");
            let bare = format!("context={LABEL}");
            let has_option = host.calls().iter().any(|call| {
                let call = format!("{call:?}").replace('\\', "");
                call.contains(&option)
                    || call.contains(&bare)
                    || call.contains(&format!("(\"context\", Some(\"{LABEL}\"))"))
            });
            assert_eq!(has_option, has_selinux, "{what}: {:?}", host.calls());
            node.unpublish(&volumes).unwrap();
            node.is_clear(&host, &[], &what);
        }
    }
}

#[test]
fn a_label_is_given_to_a_writable_layer_s_own_filesystem() {
    for medium in [Medium::Disk, Medium::Memory] {
        let node = Node::new(UnionRequest::Overlay, 2, false, Owner::Plugin);
        let host = Arc::new(FakeHost::new());
        host.write("/proc/filesystems", "nodev\tselinuxfs\nnodev\toverlay\n");
        let volumes = node.open(&host);
        let request = PublishRequest {
            size_limit: Some(1 << 20),
            medium,
            ..labelled(&node)
        };
        volumes.publish(&request, &()).unwrap();
        let own = node.volume().join("fs");
        let entry = host.mount_at(&own).unwrap().unwrap();
        let options = entry.options.into_string().unwrap();
        let option = format!("context=\"{LABEL}\"");
        assert!(options.ends_with(&option), "{medium:?}: {options}");
        node.unpublish(&volumes).unwrap();
        node.is_clear(&host, &[], "after it");
    }
}
