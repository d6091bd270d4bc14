//! What is right and what is wrong with the plugin, for probes: gathered from
//! where it is found out, asked without waiting for anything.

use super::registration::Registered;
use std::sync::Arc;
use tokio::sync::watch;

/// The plugin's condition. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Health(Arc<State>);

#[derive(Debug)]
struct State {
    phase: watch::Sender<Phase>,
    registration: watch::Sender<Registered>,
}

/// How far the process is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// It puts right what an earlier one left, and tests the node.
    Starting,
    /// It takes calls.
    Serving,
    /// It takes calls, and cannot publish anything on this node.
    Unusable(String),
    /// It finishes what runs.
    Stopping,
}

/// What `Probe` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Calls are taken.
    Ready,
    /// Not yet, or not any more.
    NotReady,
    /// The node lacks something that only its operator can give.
    Unusable(String),
}

impl Default for Health {
    fn default() -> Self {
        Health(Arc::new(State {
            phase: watch::Sender::new(Phase::Starting),
            registration: watch::Sender::new(Registered::Elsewhere),
        }))
    }
}

impl Health {
    /// The node was tested: whether volumes can be published on it, and if not,
    /// why.
    pub fn tested(&self, result: Result<(), String>) {
        self.0.phase.send_replace(match result {
            Ok(()) => Phase::Serving,
            Err(reason) => Phase::Unusable(reason),
        });
    }

    /// The plugin is being stopped.
    pub fn stopping(&self) {
        self.0.phase.send_replace(Phase::Stopping);
    }

    pub(super) fn registration(&self) -> watch::Sender<Registered> {
        self.0.registration.clone()
    }

    /// What kubelet makes of the plugin.
    pub fn registered(&self) -> Registered {
        self.0.registration.borrow().clone()
    }

    /// Whether calls are served, so that a probe can be made over the socket.
    pub fn is_serving(&self) -> bool {
        matches!(*self.0.phase.borrow(), Phase::Serving | Phase::Unusable(_))
    }

    /// Waits until every condition of readiness holds.
    pub async fn ready(&self) {
        let mut phase = self.0.phase.subscribe();
        let mut registration = self.0.registration.subscribe();
        while self.conditions().iter().any(|(_, result)| result.is_err()) {
            // The senders are this very object's.
            let _ = tokio::select! {
                changed = phase.changed() => changed,
                changed = registration.changed() => changed,
            };
        }
    }

    /// Waits until kubelet says something of the registration, be it the same
    /// again, or the plugin's socket is made anew.
    pub async fn registration_said(&self) {
        // The sender is this very object's.
        let _ = self.0.registration.subscribe().changed().await;
    }

    /// The answer to a probe.
    pub fn answer(&self) -> Answer {
        match &*self.0.phase.borrow() {
            Phase::Starting | Phase::Stopping => Answer::NotReady,
            Phase::Serving => Answer::Ready,
            Phase::Unusable(reason) => Answer::Unusable(reason.clone()),
        }
    }

    /// Each condition of readiness by its name, and if it does not hold, why.
    pub fn conditions(&self) -> Vec<(&'static str, Result<(), String>)> {
        let phase = self.0.phase.borrow();
        let process = match &*phase {
            Phase::Starting => Err("recovering volumes and testing the node".to_owned()),
            Phase::Stopping => Err("the plugin is being stopped".to_owned()),
            Phase::Serving | Phase::Unusable(_) => Ok(()),
        };
        let node = match &*phase {
            Phase::Unusable(reason) => Err(reason.clone()),
            Phase::Starting => Err("not tested yet".to_owned()),
            Phase::Serving | Phase::Stopping => Ok(()),
        };
        let registration = match &*self.0.registration.borrow() {
            Registered::Elsewhere | Registered::Yes => Ok(()),
            Registered::Waiting => Err("kubelet has not registered the plugin yet".to_owned()),
            Registered::Refused(error) => Err(format!("kubelet refuses the plugin: {error}")),
        };
        vec![
            ("process", process),
            ("node", node),
            ("registration", registration),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(health: &Health) -> Vec<&'static str> {
        let conditions = health.conditions().into_iter();
        conditions
            .filter(|(_, result)| result.is_err())
            .map(|(name, _)| name)
            .collect()
    }

    #[test]
    fn a_plugin_is_ready_when_it_was_tested_and_is_registered() {
        let health = Health::default();
        assert_eq!(faults(&health), ["process", "node"]);
        assert_eq!(health.answer(), Answer::NotReady);
        health.tested(Ok(()));
        assert_eq!(faults(&health), Vec::<&str>::new());
        assert_eq!(health.answer(), Answer::Ready);
        health.registration().send_replace(Registered::Waiting);
        assert_eq!(faults(&health), ["registration"]);
        // Whoever could register the plugin has to be answered first.
        assert_eq!(health.answer(), Answer::Ready);
        let refusal = Registered::Refused("no such driver".to_owned());
        health.registration().send_replace(refusal);
        let why = health.conditions()[2].1.clone().unwrap_err();
        assert!(why.contains("no such driver"), "{why}");
        health.registration().send_replace(Registered::Yes);
        health.tested(Err("no union".to_owned()));
        assert_eq!(faults(&health), ["node"]);
        assert_eq!(health.answer(), Answer::Unusable("no union".to_owned()));
        health.stopping();
        assert_eq!(faults(&health), ["process"]);
        assert_eq!(health.answer(), Answer::NotReady);
    }

    #[tokio::test]
    async fn who_waits_for_readiness_is_woken_by_its_last_condition() {
        let health = Health::default();
        health.registration().send_replace(Registered::Waiting);
        let waiting = tokio::spawn({
            let health = health.clone();
            async move { health.ready().await }
        });
        tokio::task::yield_now().await;
        health.tested(Ok(()));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let registration = health.registration();
        registration.send_replace(Registered::Yes);
        waiting.await.unwrap();
        // That kubelet says the same again is news, too.
        let waiting = tokio::spawn({
            let health = health.clone();
            async move { health.registration_said().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        registration.send_replace(Registered::Yes);
        waiting.await.unwrap();
    }
}
