// What is handed over to the WebUI: its txt2img gets the prompt and the size, its lists the new model.
(function() {
    const page = window.dreamboothPage;
    if (page.openInTxt2img) return;
    const {root, byId, click, setText} = page;

    function refreshCheckpoint() {
        click('dreambooth_refresh_checkpoint');
    }

    function openInTxt2img(data) {
        refreshCheckpoint();
        const prompt = root().querySelector('#txt2img_prompt textarea');
        // That of the picture which was chosen, else the run's own.
        const text = page.cellPrompt && page.cellRun === data.name ? page.cellPrompt : data.prompt;
        page.cellPrompt = null;
        // A prompt that somebody typed stays; one of ours may be replaced by the next one.
        if (prompt && text && (prompt.value.trim() === '' || prompt.value === page.prompt)) {
            setText('txt2img_prompt', text);
            page.prompt = text;
        }
        fitSize(data.side);
        const wanted = root().querySelector('#dreambooth_sample_settings input');
        if (wanted && wanted.checked && data.samples === 'yes') click('dreambooth_apply_sample_settings');
        if (typeof switch_to_txt2img === 'function') switch_to_txt2img();
    }

    // At txt2img's own 512 px a model of another size draws badly. A size that somebody has set stays.
    function fitSize(side) {
        const sizes = ['txt2img_width', 'txt2img_height'];
        const shown = sizes.map((id) => root().querySelector('#' + id + ' input'));
        if (!side || shown.some((field) => !field || !['512', page.side].includes(field.value))) return;
        sizes.forEach((id) => setText(id, side));
        page.side = side;
    }

    // The WebUI draws its cards of models and LoRAs once, for pages that are opened later, too: it is asked to draw them anew when
    // there is a new one, which may have come while no page was open. Once for each job: where there are many it takes a while.
    const CARDS_OF = 'dreambooth_cards_of';
    const kept = (use) => {
        try {
            return use(localStorage);
        } catch {
            return null;  // a browser that keeps nothing
        }
    };

    function drawCards(data, hasSeenItEnd) {
        if (data.state !== 'finished' || !data.published || page.cards === data.job) return;
        page.cards = data.job;
        if (!hasSeenItEnd && kept((store) => store.getItem(CARDS_OF)) === data.job) return;
        kept((store) => store.setItem(CARDS_OF, data.job));
        ['txt2img', 'img2img'].forEach((tab) => {
            const own = ['lora', 'checkpoints'].map((kind) => byId(tab + '_' + kind + '_extra_refresh_internal')).find(Boolean);
            if (own) own.click();
        });
    }

    Object.assign(page, {refreshCheckpoint, openInTxt2img, drawCards});
})();
