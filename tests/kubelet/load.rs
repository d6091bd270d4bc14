//! Very many volumes at once, again and again.

use super::fake::Volume;
use super::support::model::flatten;
use super::support::tree::{Compared, assert_same, read};
use super::{layers, running};
use std::time::Instant;
use tokio::task::JoinSet;

const VOLUMES: usize = 256;
const ROUNDS: usize = 30;

#[tokio::test]
async fn hundreds_of_volumes_come_and_go_at_once_and_leave_nothing() {
    let (node, driver, kubelet) = running().await;
    let layers = layers();
    let image = node.image("app", &layers);
    let expected = flatten(&layers).unwrap();
    let began = Instant::now();
    for round in 0..ROUNDS {
        let mut all = JoinSet::new();
        for number in 0..VOLUMES {
            let kubelet = kubelet.clone();
            let mut volume = kubelet.volume(&image);
            volume.read_only = number % 4 == 0;
            all.spawn(async move {
                kubelet.set_up(&mut volume).await.unwrap();
                volume
            });
        }
        let volumes: Vec<Volume> = all.join_all().await;
        assert_eq!(node.mounts().len(), VOLUMES, "round {round}");
        let one = &volumes[round % VOLUMES];
        let actual = read(&one.target()).unwrap();
        assert_same("one of them", &expected, &actual, Compared::ALL);
        let mut all = JoinSet::new();
        for mut volume in volumes {
            let kubelet = kubelet.clone();
            all.spawn(async move { kubelet.delete(&mut volume).await });
        }
        all.join_all().await;
        node.has_no_volumes(&format!("round {round}"));
    }
    println!(
        "{ROUNDS} rounds of {VOLUMES} volumes in {:?}",
        began.elapsed()
    );
    let metrics = driver.get("/metrics").await.1;
    assert!(
        metrics.contains("\naufs_csi_operations_in_flight 0\n"),
        "{metrics}"
    );
    assert_eq!(node.layers().len(), layers.len());
}
