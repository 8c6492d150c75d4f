// The review's buttons and viewer. It loads nothing: image and masks stand in the page.
"use strict";
(() => {
  const review = JSON.parse(document.getElementById("review").textContent);
  const post = location.protocol === "file:" ? "" : document.body.dataset.post || "";
  const root = document.documentElement;
  const by = (id) => document.getElementById(id);

  // --- the decision ---

  by("meaning").textContent = post
    ? "Your decision is sent to the node that made this page, under the name you are signed in with."
    : "This page is not connected to a node: a decision is saved as a draft file. It verifies nothing and changes no report until somebody "
      + "applies it with monai-unet review.";
  by("decision").onclick = (event) => {
    const decision = event.target.dataset?.decision;
    if (decision) decide(decision);
  };

  if (post) stand();

  // Who is signed in, and whether the result waits for them; a server that does not say leaves the page as it is.
  async function stand() {
    const answer = await fetch(post, { credentials: "same-origin" }).catch(() => null);
    const now = answer?.ok ? await answer.json().catch(() => null) : null;
    if (!now) return;
    by("meaning").textContent = `Your decision is sent to the node that made this page. You are signed in as ${now.who}: `
      + "this name is written into the verified report.";
    if (now.decided) {
      mark(now.decided.decision);
      say(now.decided);
      tell(`Decided: ${now.decided.decision} by ${now.decided.by || "an unnamed person"}, ${now.decided.at.slice(0, 10)}.`);
    }
    if (now.open) return;
    for (const button of by("decision").querySelectorAll("button")) button.disabled = true;
    if (!now.decided) tell(`This result is ${now.state}: a decision is no longer possible.`);
  }

  async function decide(decision) {
    const written = {
      schema_version: "1.0",
      case: review.case,
      result_sha256: review.result_sha256,
      labels_sha256: review.labels_sha256,
      decision,
      comment: by("comment").value.trim(),
      decided_at: new Date().toISOString(),
      draft: !post,
    };
    if (!post) return save(written);
    const corrects = decision === "corrected";
    by("mask").hidden = !corrects;
    if (corrects && !by("mask").files.length) {
      return tell("Choose the corrected mask (NIfTI, SEG or RTSTRUCT), then press Correct again. Nothing has been sent yet.");
    }
    tell("Sending ...");
    try {
      const answer = await fetch(post, { method: "POST", credentials: "same-origin", ...told(written, corrects) });
      if (!answer.ok) throw new Error(await reason(answer));
      mark(decision);
      tell(`Recorded: ${decision}.`);
      await stand();
    } catch (error) {
      tell(`Not recorded: ${error.message}. Nothing has changed.`);
    }
  }

  function told(written, corrects) {
    const text = JSON.stringify(written);
    if (!corrects) return { headers: { "Content-Type": "application/json" }, body: text };
    const body = new FormData();
    body.append("decision", text);
    body.append("mask", by("mask").files[0]);
    return { body };
  }

  async function reason(answer) {
    const said = await answer.json().catch(() => ({}));
    return typeof said.detail === "string" ? said.detail : `the node answered ${answer.status}`;
  }

  function save(written) {
    const link = element("a", {
      href: URL.createObjectURL(new Blob([JSON.stringify(written, null, 2) + "\n"], { type: "application/json" })),
      download: `${review.file_name}_decision_draft.json`,
    });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    mark(written.decision);
    const next = written.decision === "corrected" ? " Provide the corrected mask as NIfTI, SEG or RTSTRUCT." : "";
    tell(`Draft saved as ${link.download}: ${written.decision}. It verifies nothing.${next}`);
  }

  function mark(decision) {
    for (const button of by("decision").querySelectorAll("button")) {
      setPressed(button, button.dataset.decision === decision);
    }
  }

  // The line at the top says what became of the result; what a machine computed stays for research.
  function say(decided) {
    const done = decided.decision.charAt(0).toUpperCase() + decided.decision.slice(1);
    by("mark").textContent = `Research use only. Computed by a machine. ${done} by ${spoken(decided.by) || "a reviewer"} on `
      + `${decided.at.slice(0, 10)}. Not for diagnosis.`;
    by("mark").classList.toggle("accepted", decided.decision === "accepted");
  }

  // A person's name as DICOM has it, as it is read: family name, given and middle names.
  function spoken(name) {
    const [family, ...given] = (name || "").split("=")[0].split("^");
    return [family, given.slice(0, 2).filter(Boolean).join(" ")].filter(Boolean).join(", ");
  }

  function tell(text) {
    by("told").textContent = text;
  }

  // An element with these properties and this content.
  function element(tag, properties, ...content) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...content);
    return made;
  }

  function setPressed(button, pressed) {
    button.setAttribute("aria-pressed", String(pressed));
  }

  // --- the viewer ---

  const on = { mask: true, contour: false, uncertainty: false };
  const hidden = new Set();
  let fill = 0.45;
  let pointed = null; // millimetres under the pointer; null: it is not over a slice
  let nv; // the viewer
  const shown = []; // its layers from bottom to top, the image first

  // Lets the browser paint what was changed before the next piece of work.
  const painted = () => new Promise((go) => requestAnimationFrame(() => setTimeout(go, 0)));

  async function progress(text, done) {
    by("step").textContent = text;
    by("progress").max = review.layers.length + 2;
    by("progress").value = done;
    await painted();
  }

  async function view() {
    nv = new niivue.Niivue({
      backColor: [0, 0, 0, 1],
      clipPlaneColor: [0, 0, 0, 0],
      crosshairColor: [1, 1, 1, 0.5],
      crosshairGap: 8,
      crosshairWidth: 0.3,
      crosshairWidthUnit: "percent",
      dragAndDropEnabled: false,
      fontColor: [1, 1, 1, 1],
      isColorbar: false,
      isRadiologicalConvention: true,
      loadingText: "",
      logLevel: "error",
      multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID,
      measureLineColor: [1, 0.85, 0.2, 1],
      measureTextColor: [1, 0.85, 0.2, 1],
      measureTextHeight: 0.04,
      rulerWidth: 2,
      show3Dcrosshair: false,
      showMeasureUnits: review.unit.lengths === "mm",
      sliceType: niivue.SLICE_TYPE.AXIAL, // three planes are drawn once, when all is there
    });
    window.viewer = nv; // for whoever opens the console, and for tests
    await progress("Starting the viewer ...", 0);
    await nv.attachToCanvas(by("canvas"));
    nv.updateGLVolume = () => {}; // once for all layers, below
    for (const layer of review.layers) {
      await progress(`Reading ${layer.kind} (${shown.length + 1} of ${review.layers.length}) ...`, shown.length + 1);
      const image = await niivue.NVImage.loadFromBase64({
        base64: by(`layer-${layer.name}`).textContent,
        name: `${layer.name}.nii.gz`,
        colormap: layer.kind === "uncertainty" ? "inferno" : "gray",
        opacity: layer.kind === "image" ? 1 : 0,
      });
      if (layer.kind === "image" && review.window) [image.cal_min, image.cal_max] = review.window;
      if (layer.kind === "uncertainty") [image.cal_min, image.cal_max] = [0.15 * review.steps, review.steps];
      nv.addVolume(image);
      shown.push({ ...layer, image });
    }
    await progress("Drawing ...", review.layers.length + 1);
    delete nv.updateGLVolume;
    paint();
    offer();
    inform();
    listen();
    if (review.places.length) {
      nv.setClipPlane([0, 270, 0]); // cut open, so that what lies inside is seen
      go(review.places[0]);
    }
    if (!review.planar) by(isDrawnBySoftware() ? "toggle-view-planes" : "toggle-view-planes3d").click();
    by("loading").hidden = true;
    by("help").hidden = false;
    by("info").hidden = false;
    place();
    root.dataset.viewer = "ready";
  }

  function paint() {
    const opacities = { mask: fill, contour: 1, uncertainty: 0.7 };
    for (const layer of shown) {
      if (layer.kind === "image") continue;
      if (layer.structures) layer.image.setColormapLabel(table(layer.structures));
      layer.image.opacity = on[layer.kind] ? opacities[layer.kind] : 0;
    }
    nv.updateGLVolume();
    root.dataset.shown = Object.keys(on).filter((kind) => on[kind]).join(" ");
  }

  // Colours by label value; 0 and what is switched off are transparent.
  function table(structures) {
    const column = (background, value) => [background, ...structures.map(value)];
    const [R, G, B] = [0, 1, 2].map((channel) => column(0, (one) => one.rgb[channel]));
    const A = column(0, (one) => hidden.has(one.number) ? 0 : 255);
    return { R, G, B, A, I: column(0, (one) => one.number), labels: column("", (one) => one.label) };
  }

  function go(place) {
    nv.scene.crosshairPos = nv.mm2frac(place);
    nv.createOnLocationChange();
    nv.drawScene();
  }

  function offer() {
    const kinds = new Set(shown.map((layer) => layer.kind));
    if (!review.planar) offerViews();
    const bar = by("layers");
    for (const [kind, name] of [["mask", "Mask"], ["contour", "Contours"], ["uncertainty", "Uncertainty"]]) {
      if (kinds.has(kind)) bar.append(toggle(name, on[kind], kind, (pressed) => { on[kind] = pressed; paint(); }));
    }
    if (kinds.has("mask")) bar.append(slider());
    for (const one of review.structures.filter(() => kinds.has("mask") && review.structures.length > 1)) {
      const button = toggle(one.label, true, `structure-${one.number}`, (pressed) => {
        if (pressed) hidden.delete(one.number); else hidden.add(one.number);
        paint();
      });
      button.prepend(element("span", { className: `swatch s${one.number}` }));
      bar.append(button);
    }
    offerWindows();
    document.querySelectorAll(".keys button").forEach((key, n) => {
      key.onclick = () => go(review.places[n]);
    });
  }

  // --- window, distance ---

  function offerWindows() {
    const image = shown[0].image;
    const buttons = review.windows.map((one, n) => element("button", {
      type: "button",
      id: `window-${n}`,
      title: `${round(one.low)} to ${round(one.high)}`,
      onclick: () => {
        [image.cal_min, image.cal_max] = [one.low, one.high];
        nv.updateGLVolume();
        report();
      },
    }, n ? one.name : "Default window"));
    const measure = toggle("Measure a distance", false, "measure", (pressed) => {
      nv.opts.dragModePrimary = niivue.DRAG_MODE[pressed ? "measurement" : "crosshair"];
      if (!pressed) forget();
    });
    by("windows").append(...buttons, measure);
  }

  function forget() {
    nv.clearMeasurements();
    by("at-distance").textContent = "";
    report();
  }

  // --- what is under the pointer ---

  function inform() {
    const canvas = by("canvas");
    nv.onLocationChange = report;
    nv.onIntensityChange = report;
    nv.onMeasurementCompleted = (one) => {
      by("at-distance").textContent = `${one.distance.toFixed(1)} ${review.unit.lengths}`;
      report();
    };
    canvas.addEventListener("pointermove", (event) => {
      const ratio = canvas.width / canvas.clientWidth;
      const place = nv.canvasPos2frac([event.offsetX * ratio, event.offsetY * ratio]);
      pointed = place[0] >= 0 ? millimetres(place) : null;
      report();
    });
    canvas.addEventListener("pointerleave", () => { pointed = null; report(); });
    new ResizeObserver(place).observe(by("stage"));
    report();
  }

  function millimetres(fractions) {
    return [...nv.frac2mm(fractions)].slice(0, 3);
  }

  function report() {
    const image = shown[0].image;
    const at = pointed || millimetres(nv.scene.crosshairPos);
    const here = (one) => [...one.mm2vox(at)].slice(0, 3);
    const voxel = here(image);
    const within = voxel.every((n, axis) => n >= 0 && n < image.dimsRAS[axis + 1]);
    put("at-slice", !within ? "" : review.planar ? `column ${voxel[0] + 1}, row ${image.dimsRAS[2] - voxel[1]}` : numbers(voxel, image));
    put("at-value", within && review.window ? `${round(image.getValue(...voxel))} ${review.unit.values}`.trim() : "");
    const found = shown.filter((layer) => layer.kind === "mask" && within).flatMap((layer) => {
      const number = Math.round(layer.image.getValue(...here(layer.image)));
      return layer.structures.filter((one) => one.number === number).map((one) => one.label);
    });
    put("at-structure", found.join(", ") || (within ? "none" : ""));
    put("at-window", review.window ? `${round(image.cal_min)} to ${round(image.cal_max)}` : "");
    put("at-distance", by("at-distance").textContent);
  }

  function put(id, text) {
    by(id).textContent = text;
    by(id).parentElement.hidden = !text;
  }

  // Sagittal slices are counted from the right, coronal ones from the front, axial ones from the feet, as in the key images.
  function numbers(voxel, image) {
    const [x, y, z] = voxel;
    const own = [image.dimsRAS[1] - 1 - x, image.dimsRAS[2] - 1 - y, z];
    const slices = review.slices;
    const told = (axis) => `${slices.first[axis] + slices.step[axis] * own[axis] + 1} of ${slices.count[axis]}`;
    return `axial ${told(2)}, coronal ${told(1)}, sagittal ${told(0)}`;
  }

  function round(value) {
    return String(Number.isInteger(value) ? value : Number(value.toPrecision(4)));
  }

  // Where three planes leave a quarter of the picture empty, the words stand there; else along its lower edge.
  function place() {
    const [info, canvas] = [by("info"), by("canvas")];
    const ratio = canvas.clientWidth / canvas.width;
    const tiles = nv.screenSlices.map((one) => one.leftTopWidthHeight.map((value) => value * ratio));
    const [left, top] = [0, 1].map((side) => Math.max(...tiles.map((one) => one[side])));
    const free = tiles.length === 3 && left > 0 && top > 0 && !tiles.some((one) => one[0] >= left && one[1] >= top)
      && canvas.clientWidth - left > 220 && canvas.clientHeight - top > 150;
    info.classList.toggle("quadrant", free);
    info.style.left = free ? `${left}px` : "";
    info.style.top = free ? `${top}px` : "";
    root.dataset.words = free ? "quadrant" : "edge";
  }

  // --- keys: only those pressed while the picture has the focus ---

  const keys = { p: "toggle-view-planes", a: "toggle-view-axial", c: "toggle-view-coronal", s: "toggle-view-sagittal", 3: "toggle-view-3d",
    m: "toggle-mask", o: "toggle-contour", u: "toggle-uncertainty", r: "window-0", d: "toggle-measure" };
  let nextWindow = 1;

  function listen() {
    for (const kind of ["keydown", "keyup"]) {
      document.addEventListener(kind, (event) => {
        if (event.target !== by("canvas")) return;
        event.stopPropagation(); // the viewer's own keys do other things
        if (kind === "keydown" && !event.ctrlKey && !event.altKey && !event.metaKey && press(event.key)) event.preventDefault();
      }, true);
    }
  }

  function press(key) {
    const step = { ArrowUp: 1, PageUp: 1, ArrowDown: -1, PageDown: -1 }[key];
    if (step) return move(step);
    if (key === "Escape") return forget(), true;
    if (key.toLowerCase() === "w" && review.windows.length) {
      by(`window-${nextWindow % review.windows.length}`).click();
      return ++nextWindow;
    }
    const button = by(keys[key.toLowerCase()] || "none");
    if (button) button.click();
    return Boolean(button);
  }

  // To the slice of the next higher number, or lower, in the plane that is seen; in the scanner's own plane where several are.
  function move(step) {
    const types = niivue.SLICE_TYPE;
    const axis = { [types.SAGITTAL]: 0, [types.CORONAL]: 1, [types.AXIAL]: 2 }[nv.opts.sliceType] ?? review.across;
    const way = [0, 0, 0];
    way[axis] = axis === 2 ? step : -step;
    nv.moveCrosshairInVox(...way);
    return true;
  }

  function offerViews() {
    const types = niivue.SLICE_TYPE;
    const views = [["planes", "Three planes", types.MULTIPLANAR], ["planes3d", "Three planes and 3D", types.MULTIPLANAR],
      ["axial", "Axial", types.AXIAL], ["coronal", "Coronal", types.CORONAL], ["sagittal", "Sagittal", types.SAGITTAL],
      ["3d", "3D", types.RENDER]];
    const buttons = views.map(([id, name, type]) => {
      const button = toggle(name, false, `view-${id}`, () => {
        buttons.forEach((other) => setPressed(other, other === button));
        nv.opts.multiplanarShowRender = niivue.SHOW_RENDER[id === "planes3d" ? "ALWAYS" : "NEVER"];
        nv.setSliceType(type);
        place();
      });
      return button;
    });
    by("views").append(...buttons);
  }

  // Without a graphics card a view in 3D takes seconds a frame: it is there, but not begun with.
  function isDrawnBySoftware() {
    const known = nv.gl.getExtension("WEBGL_debug_renderer_info");
    const name = known ? String(nv.gl.getParameter(known.UNMASKED_RENDERER_WEBGL)) : "";
    return /swiftshader|llvmpipe|softpipe|basic render|software/i.test(name);
  }

  function toggle(name, pressed, id, act) {
    const button = element("button", {
      type: "button",
      id: `toggle-${id}`,
      onclick: () => {
        const now = button.getAttribute("aria-pressed") !== "true";
        setPressed(button, now);
        act(now);
      },
    }, name);
    setPressed(button, pressed);
    return button;
  }

  function slider() {
    const input = element("input", { type: "range", min: 0.1, max: 1, step: 0.05, value: fill });
    input.oninput = () => { fill = Number(input.value); paint(); };
    return element("label", {}, "Opacity", input);
  }

  if (review.layers.length) {
    // after the first paint: key images and figures are there at once
    painted().then(view).catch((error) => {
      by("loading").hidden = false;
      by("progress").hidden = true;
      by("step").textContent = `The viewer could not start (${error.message}); the key images are complete. A browser `
        + "with WebGL 2 is needed.";
      root.dataset.viewer = "failed";
    });
  }
})();
