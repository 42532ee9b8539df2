//! MQTT 5 and 3.1.1 as a provider of messages. The only crate that knows MQTT.
