//! The options of collection.

use super::ConfigFault;
use super::pull::duration;
use crate::image::reference::Source;
use crate::layer::collect::Marks;
use crate::volume::CollectSettings;
use crate::volume::attributes::parse_size;
use std::time::Duration;

/// No limit, or never.
const NONE: &str = "none";

/// When layers and images are removed that nobody needs.
#[derive(Debug, Clone, clap::Args)]
pub struct CollectArgs {
    /// Percent of the store's filesystem, in bytes or inodes, at which images that
    /// nobody needs are removed, the least recently used first. kubelet's own
    /// limits for the same disk begin at 85.
    #[arg(
        long,
        env = "AUFS_CSI_GC_HIGH",
        hide_env_values = true,
        value_name = "PERCENT",
        default_value = "80",
        help_heading = "Collection"
    )]
    pub gc_high: String,

    /// Percent down to which they are removed then.
    #[arg(
        long,
        env = "AUFS_CSI_GC_LOW",
        hide_env_values = true,
        value_name = "PERCENT",
        default_value = "70",
        help_heading = "Collection"
    )]
    pub gc_low: String,

    /// Size that all layers of the store may have together, such as 50Gi; what
    /// volumes write is not counted. Images that would not fit and for which no
    /// others can go are refused. none for any size.
    #[arg(
        long,
        env = "AUFS_CSI_MAX_STORE_SIZE",
        hide_env_values = true,
        value_name = "SIZE",
        default_value = NONE,
        help_heading = "Collection"
    )]
    pub max_store_size: String,

    /// An image that was used within this time stays, however short space is. An
    /// image is used when it is staged, and when a volume of it begins or ends.
    #[arg(
        long,
        env = "AUFS_CSI_GC_MIN_AGE",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "2m",
        help_heading = "Collection"
    )]
    pub gc_min_age: String,

    /// An image that was not used for this time is removed, however much space
    /// there is; none for never.
    #[arg(
        long,
        env = "AUFS_CSI_GC_MAX_AGE",
        hide_env_values = true,
        value_name = "TIME",
        default_value = NONE,
        help_heading = "Collection"
    )]
    pub gc_max_age: String,
}

impl Default for CollectArgs {
    fn default() -> Self {
        CollectArgs {
            gc_high: "80".to_owned(),
            gc_low: "70".to_owned(),
            max_store_size: NONE.to_owned(),
            gc_min_age: "2m".to_owned(),
            gc_max_age: NONE.to_owned(),
        }
    }
}

impl CollectArgs {
    /// Validates the options, with the images that stay, as they are written.
    pub fn validate(
        self,
        prefetch: &[String],
        faults: &mut Vec<ConfigFault>,
    ) -> Option<CollectSettings> {
        let before = faults.len();
        let high = percent("--gc-high", &self.gc_high, faults);
        let low = percent("--gc-low", &self.gc_low, faults);
        if let (Some(high), Some(low)) = (high, low)
            && low > high
        {
            faults.push(ConfigFault::Value {
                option: "--gc-low",
                value: self.gc_low,
                expected: "no more than --gc-high",
            });
        }
        let max_size = match self.max_store_size.as_str() {
            NONE => None,
            text => match parse_size(text) {
                Ok(bytes) => Some(bytes),
                Err(_) => {
                    faults.push(ConfigFault::Value {
                        option: "--max-store-size",
                        value: self.max_store_size.clone(),
                        expected: "a size such as 50Gi, or none",
                    });
                    None
                }
            },
        };
        let min_age = duration("--gc-min-age", &self.gc_min_age, faults);
        let max_age: Option<Option<Duration>> = match self.gc_max_age.as_str() {
            NONE => Some(None),
            text => duration("--gc-max-age", text, faults).map(Some),
        };
        if let (Some(min), Some(Some(max))) = (min_age, max_age)
            && max < min
        {
            faults.push(ConfigFault::Value {
                option: "--gc-max-age",
                value: self.gc_max_age,
                expected: "no less than --gc-min-age, or none",
            });
        }
        let mut sources = Vec::new();
        for text in prefetch.iter().filter(|text| !text.is_empty()) {
            match text.parse::<Source>() {
                Ok(source) => sources.push(source),
                Err(error) => faults.push(ConfigFault::Prefetch {
                    image: text.clone(),
                    source: error,
                }),
            }
        }
        if faults.len() > before {
            return None;
        }
        Some(CollectSettings {
            marks: Marks {
                high: high?,
                low: low?,
                max_size,
                min_age: min_age?,
                max_age: max_age?,
            },
            prefetch: sources,
        })
    }
}

fn percent(option: &'static str, text: &str, faults: &mut Vec<ConfigFault>) -> Option<u8> {
    let number = text.trim_end_matches('%').parse();
    let found = number.ok().filter(|percent| (1..=100).contains(percent));
    if found.is_none() {
        faults.push(ConfigFault::Value {
            option,
            value: text.to_owned(),
            expected: "a percentage from 1 to 100",
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_below_what_kubelet_does_itself() {
        let settings = CollectArgs::default()
            .validate(&[], &mut Vec::new())
            .unwrap();
        assert_eq!(settings.marks, Marks::default());
        assert!(settings.marks.high < 85);
    }

    #[test]
    fn everything_can_be_said() {
        let args = CollectArgs {
            gc_high: "60%".to_owned(),
            gc_low: "50".to_owned(),
            max_store_size: "50Gi".to_owned(),
            gc_min_age: "10m".to_owned(),
            gc_max_age: "168h".to_owned(),
        };
        let images = ["docker://quay.io/a/b:1", "", "oci:/images/base"].map(str::to_owned);
        let settings = args.validate(&images, &mut Vec::new()).unwrap();
        assert_eq!(
            settings.marks,
            Marks {
                high: 60,
                low: 50,
                max_size: Some(50 << 30),
                min_age: Duration::from_secs(600),
                max_age: Some(Duration::from_secs(604_800)),
            }
        );
        assert_eq!(settings.prefetch.len(), 2);
    }

    #[test]
    fn all_faults_are_found_at_once() {
        let args = CollectArgs {
            gc_high: "0".to_owned(),
            gc_low: "101".to_owned(),
            max_store_size: "much".to_owned(),
            gc_min_age: "soon".to_owned(),
            gc_max_age: "never".to_owned(),
        };
        let mut faults = Vec::new();
        let images = ["oci:".to_owned()];
        assert!(args.validate(&images, &mut faults).is_none());
        assert_eq!(faults.len(), 6, "{faults:?}");
        for (high, low, min, max) in [("70", "80", "1m", "none"), ("80", "70", "2h", "1h")] {
            let args = CollectArgs {
                gc_high: high.to_owned(),
                gc_low: low.to_owned(),
                gc_min_age: min.to_owned(),
                gc_max_age: max.to_owned(),
                ..CollectArgs::default()
            };
            let mut faults = Vec::new();
            assert!(args.validate(&[], &mut faults).is_none());
            assert_eq!(faults.len(), 1, "{faults:?}");
        }
    }
}
