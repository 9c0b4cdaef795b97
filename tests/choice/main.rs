//! Multiple choice and generation against references, as a library and as
//! scripts see them. Needs the models that `scripts/fetch-models.sh` fetches.

mod bad_input;
mod batches;
mod generate;
mod output;
mod support;
