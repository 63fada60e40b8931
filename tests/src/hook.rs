//! The same behaviour, tested once for each hook.

use veth_user::datapath::Hook;

use crate::need;

/// Whether the running kernel has a hook. If not, the test is skipped, and says why.
#[must_use]
pub fn is_there(hook: Hook) -> bool {
    match hook {
        Hook::Tcx => need::kernel(6, 6, "TCX"),
        Hook::Clsact => true,
        Hook::Xdp | Hook::XdpGeneric => need::kernel(6, 2, "XDP redirects on veth that can be trusted"),
    }
}

/// `--hook NAME`.
#[must_use]
pub const fn arguments(hook: Hook) -> [&'static str; 2] {
    ["--hook", hook.name()]
}

/// Makes a test of each function, which takes a hook, for each hook.
#[macro_export]
macro_rules! for_each_hook {
    ($($test:ident),+ $(,)?) => {
        $crate::for_each_hook!(@ tcx Tcx $($test)+);
        $crate::for_each_hook!(@ clsact Clsact $($test)+);
        $crate::for_each_hook!(@ xdp Xdp $($test)+);
        $crate::for_each_hook!(@ xdp_generic XdpGeneric $($test)+);
    };
    (@ $module:ident $hook:ident $($test:ident)+) => {
        mod $module {
            use veth_user::datapath::Hook;
            $(
                #[test]
                fn $test() {
                    if $crate::hook::is_there(Hook::$hook) {
                        super::$test(Hook::$hook);
                    }
                }
            )+
        }
    };
}
