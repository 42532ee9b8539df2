//! What wit-bindgen makes of `sdk/wit`: one small world per module, so that a component imports an interface only when
//! its author calls into that module. The linker drops the functions that nobody calls, and with the last function of
//! an interface its import goes.
//!
//! `sdk/wit` holds some packages in two versions, so the generated modules carry the version in their names; each
//! module here gives them plain ones.

#![expect(missing_docs, reason = "wit-bindgen writes it; what has words in sdk/wit has them here")]

pub mod http {
    pub use self::exports::wasi::http0_2_12::incoming_handler::Guest;
    pub use self::wasi::http0_2_12::{outgoing_handler, types};
    pub use self::wasi::io::streams;

    wit_bindgen::generate!({
        inline: "
            package trellis:component;
            world http {
                import wasi:http/types@0.2.12;
                import wasi:http/outgoing-handler@0.2.12;
                export wasi:http/incoming-handler@0.2.12;
            }
        ",
        path: "../wit",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_http",
        runtime_path: "::trellis_component::rt",
    });
}

pub mod messaging {
    pub use self::exports::trellis::messaging::handler::Guest;
    pub use self::trellis::messaging::{producer, types};

    wit_bindgen::generate!({
        inline: "
            package trellis:component;
            world messaging {
                import trellis:messaging/producer@0.1.0;
                export trellis:messaging/handler@0.1.0;
            }
        ",
        path: "../wit",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_messaging",
        runtime_path: "::trellis_component::rt",
    });
}

pub mod run {
    pub use self::exports::wasi::cli0_2_12::run::Guest;

    wit_bindgen::generate!({
        inline: "
            package trellis:component;
            world run { export wasi:cli/run@0.2.12; }
        ",
        path: "../wit",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_run",
        runtime_path: "::trellis_component::rt",
    });
}

pub mod keyvalue {
    pub use self::wasi::keyvalue::{atomics, batch, store};

    wit_bindgen::generate!({
        inline: "
            package trellis:component;
            world keyvalue {
                import wasi:keyvalue/store@0.2.0-draft;
                import wasi:keyvalue/atomics@0.2.0-draft;
                import wasi:keyvalue/batch@0.2.0-draft;
            }
        ",
        path: "../wit",
        generate_all,
        runtime_path: "::trellis_component::rt",
    });
}

pub mod config {
    pub use self::wasi::config0_2_0_rc_1::store;

    wit_bindgen::generate!({
        inline: "
            package trellis:component;
            world configuration { import wasi:config/store@0.2.0-rc.1; }
        ",
        path: "../wit",
        generate_all,
        runtime_path: "::trellis_component::rt",
    });
}

pub mod secrets {
    pub use self::wasmcloud::secrets::{reveal, store};

    wit_bindgen::generate!({
        inline: "
            package trellis:component;
            world confidential {
                import wasmcloud:secrets/store@0.1.0-draft;
                import wasmcloud:secrets/reveal@0.1.0-draft;
            }
        ",
        path: "../wit",
        generate_all,
        runtime_path: "::trellis_component::rt",
    });
}

pub mod log {
    pub use self::wasi::logging::logging;

    wit_bindgen::generate!({
        inline: "
            package trellis:component;
            world log { import wasi:logging/logging@0.1.0-draft; }
        ",
        path: "../wit",
        generate_all,
        runtime_path: "::trellis_component::rt",
    });
}
