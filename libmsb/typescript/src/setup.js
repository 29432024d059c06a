/** Installation of the programs. The package brings none and downloads none. */

import { ProgramNotFoundError, unsupported } from "./errors.js";
import { findProgram, Host, setProgram } from "./tool.js";

/** Version of this package. */
export const VERSION = "0.1.0";

/** Checks that the programs are installed. msb comes from its package, not from here. */
export async function install() {
  findProgram();
}

/** Returns whether the programs are installed. */
export function isInstalled() {
  try {
    findProgram();
    return true;
  } catch (error) {
    if (error instanceof ProgramNotFoundError) return false;
    throw error;
  }
}

/** Returns the version of this package. */
export function version() {
  return VERSION;
}

/** Returns the version of the programs. */
export async function runtimeVersion() {
  const output = (await Host.current().run(["--version"])).toString();
  return output.trim().split(/\s+/).at(-1) ?? "";
}

/** Builder of an installation, which downloads nothing. */
export class Setup {
  /** Sets the directory of the installation. @param {string} _path @returns {Setup} */
  baseDir(_path) {
    throw unsupported("baseDir");
  }

  /** Sets the version of the programs. @param {string} _version @returns {Setup} */
  version(_version) {
    throw unsupported("version");
  }

  /** Does not compare the programs with their digests: there is nothing to compare. */
  skipVerify() {
    return this;
  }

  /** Installs again: there is nothing to install. */
  force() {
    return this;
  }

  /** Checks that the programs are installed. */
  async install() {
    await install();
  }
}

/** Returns a builder of an installation. */
export function setup() {
  return new Setup();
}

export { setProgram };
