//! `pelton quantize`: from flags to a plan, from a checkpoint to a smaller one.

use std::io;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use pelton_backend::{Bits, Group};
use pelton_cpu::CpuBackend;
use pelton_model::ModelFiles;
use pelton_model::quantize::{Calibration, QuantizeFormat, quantize};
use pelton_text::TextModel;

use super::checkpoint;
use crate::args::quantize::{FormatArg, QuantizeArgs};

pub fn run(args: &QuantizeArgs) -> Result<ExitCode> {
    let format = format(args)?;
    let (files, name) = checkpoint::find(Some(&args.input), &args.hub)?;
    let calibration = match &args.calibration {
        None if format.calibrates() => bail!(
            "--format {} needs --calibration FILE: a text that shows what the model's activations look like (int8 and int4 need none)",
            if args.format == FormatArg::Gptq { "gptq" } else { "awq" }
        ),
        Some(_) if !format.calibrates() => {
            bail!("--calibration means nothing for int8 and int4, which round to nearest: leave it out")
        }
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Some(calibration(args, &files, &text).with_context(|| format!("cannot load the tokenizer of {name}"))?)
        }
    };
    if let Some(flag) = args.compute.given().filter(|_| !format.calibrates()) {
        bail!("{flag} means nothing for int8 and int4, which compute no model: leave it out");
    }
    let backend = CpuBackend::new(args.compute.config())?;
    let report = quantize(&files, backend, format, calibration.as_ref(), &args.output, !args.quiet)
        .with_context(|| format!("cannot quantize {name}"))?;
    println!(
        "{}: {} matrices in integers, {:.1} MB of weights where there were {:.1} MB",
        args.output.display(),
        report.matrices,
        report.bytes_after as f64 / 1e6,
        report.bytes_before as f64 / 1e6
    );
    if report.unseen > 0 {
        println!(
            "{} of them (experts) were rounded to nearest: no token of the calibration text reached them. A longer or more varied text would",
            report.unseen
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn calibration(args: &QuantizeArgs, files: &ModelFiles, text: &str) -> Result<Calibration> {
    let read = |name: &str| Ok(files.read(name).map_err(io::Error::other)?.map(|bytes| bytes.into_owned()));
    let mut tokens = TextModel::from_files(&read)?.encode(text, false)?;
    tokens.truncate(args.calibration_tokens as usize);
    Ok(Calibration { tokens, piece: args.calibration_context.map(|context| context as usize) })
}

/// What the flags say, if it exists.
fn format(args: &QuantizeArgs) -> Result<QuantizeFormat> {
    let (default_bits, default_group) = if args.format == FormatArg::Int8 { (8, -1) } else { (4, 128) };
    let bits = match (args.format, args.bits.unwrap_or(default_bits)) {
        (FormatArg::Gptq, 4) | (FormatArg::Awq | FormatArg::Int4, 4) => Bits::Four,
        (FormatArg::Gptq | FormatArg::Int8, 8) => Bits::Eight,
        (FormatArg::Gptq, bits) => bail!("--bits is {bits}, expected 4 or 8"),
        (FormatArg::Int8, bits) => bail!("--bits is {bits}, expected 8 with --format int8"),
        (_, bits) => bail!("--bits is {bits}, expected 4 with this format; gptq has 8 too"),
    };
    let group = match args.group_size.unwrap_or(default_group) {
        32 => Group::Of32,
        64 => Group::Of64,
        128 => Group::Of128,
        -1 => Group::Row,
        other => bail!("--group-size is {other}, expected 32, 64, 128 or -1 (all of a row)"),
    };
    if args.act_order && args.format != FormatArg::Gptq {
        bail!("--act-order is for --format gptq: the others round each weight on its own");
    }
    Ok(match args.format {
        FormatArg::Gptq => QuantizeFormat::Gptq { bits, group, act_order: args.act_order },
        FormatArg::Awq if group == Group::Row => bail!("--group-size is -1, expected 32, 64 or 128 with --format awq"),
        FormatArg::Awq => QuantizeFormat::Awq { group },
        FormatArg::Int8 if group == Group::Row => QuantizeFormat::Int8,
        FormatArg::Int8 => bail!("--format int8 has one scale for each output feature: leave --group-size out"),
        FormatArg::Int4 => QuantizeFormat::Int4 { group },
    })
}
